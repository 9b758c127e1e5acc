"""A service or a flow is killed while a deployment runs: what was done is kept, the same run again comes through."""

import os
import signal
import time
from pathlib import Path

import pytest
from command_server import TINY_SETTINGS
from services import wait_until

from infra.stack import http, object_store, processes
from infra.stack import service as services

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def longer(seed: int) -> list[str]:
    """The demo's pair with trainings of some ten seconds, another one for each test."""
    return [*TINY_SETTINGS, "train.fit.epochs=40", f"attack.trigger.seed={seed}"]


def kept(stack, prefix: str) -> list[str]:
    """Keys of the store under ``prefix``."""
    pages = object_store.client(stack.config, "reader").get_paginator("list_objects_v2")
    found = pages.paginate(Bucket="artifacts", Prefix=f"lab/{prefix}")
    return [entry["Key"] for page in found for entry in page.get("Contents", ())]


def training(stack) -> list[int]:
    return [pid for pid, title in stack.titles().items() if title.startswith("ray::train")]


def flow_process(stack, run_id: str) -> int:
    """The process in which the worker runs a flow."""
    for pid in stack.titles():
        if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError(f"no process runs {run_id}")


def kill(stack, name: str) -> None:
    """SIGKILL to every process of a service, as a machine out of memory does."""
    leader = services.running(stack.config, name)
    assert leader is not None
    for each in processes.members(stack.folder, name, leader):
        os.kill(each.process.pid, signal.SIGKILL)
    wait_until(lambda: services.running(stack.config, name) is None, timeout_s=20, what=f"the end of {name}")


def begin(stack, settings: list[str]):
    """A run whose trainings have left a checkpoint."""
    begun = stack.deploy("experiment/demo", settings=settings, resources={"checkpoint_every_steps": 20})
    assert begun.returncode == 0, begun.stderr
    wait_until(lambda: kept(stack, ".checkpoints/train/"), timeout_s=200, what="a checkpoint")
    return begun


def end(stack, begun) -> dict:
    """The last state of a run."""
    wait_until(lambda: stack.flow_run(begun)["state"]["type"] in ENDED, timeout_s=240, what="the end of the flow")
    return stack.flow_run(begun)["state"]


def finish(stack, settings: list[str]) -> None:
    """The same run again comes through, and leaves neither checkpoint nor training behind."""
    done = stack.deploy("experiment/demo", "--watch", settings=settings)
    assert done.returncode == 0, stack.flow_run(done)["state"]
    assert kept(stack, ".checkpoints/") == []
    assert training(stack) == []


def test_a_killed_flow_takes_its_trainings_along_and_goes_on(stack):
    begun = begin(stack, longer(41))
    os.kill(flow_process(stack, stack.flow_run(begun)["id"]), signal.SIGKILL)
    assert end(stack, begun)["type"] == "CRASHED"
    wait_until(lambda: not training(stack), timeout_s=30, what="the trainings to end")
    finish(stack, longer(41))


def test_a_killed_object_store_ends_the_run_with_a_sentence(stack):
    begun = begin(stack, longer(42))
    kill(stack, "s3")
    state = end(stack, begun)
    assert state["type"] == "FAILED"
    assert "s3://artifacts/lab" in state["message"]
    assert len(state["message"].splitlines()) == 1
    assert stack("up")[0] == 0
    finish(stack, longer(42))


def test_without_mlflow_a_run_ends_well_and_is_recorded_later_once(stack):
    settings = [*TINY_SETTINGS, "evaluation.knn_neighbours=7"]
    kill(stack, "mlflow")
    done = stack.deploy("experiment/demo", "--watch", settings=settings)
    state = stack.flow_run(done)["state"]
    assert (done.returncode, state["type"]) == (0, "COMPLETED"), state
    assert "not in MLflow yet" in state["message"]
    assert stack("up")[0] == 0
    key = state["message"].split()[1].rpartition("/")[2]
    for _ in range(2):
        told = stack.client("from flows.cli import main; main(['reindex'])")
        assert f"report/{key[:12]}" in told.stdout, told.stderr
    script = f"""
import mlflow
client = mlflow.MlflowClient()
experiments = [one.experiment_id for one in client.search_experiments()]
print(len(client.search_runs(experiments, "tags.`ssl_backdoor.report_key` = '{key}'")))
"""
    assert stack.client(script).stdout.split() == ["1"]


def test_prefect_restarted_in_the_middle_loses_no_result(stack):
    begun = begin(stack, longer(43))
    kill(stack, "prefect")
    time.sleep(2.0)
    assert stack("up")[0] == 0
    state = end(stack, begun)
    assert state["type"] in ("COMPLETED", "FAILED", "CRASHED"), state
    wait_until(lambda: not training(stack), timeout_s=240, what="the trainings to end")
    finish(stack, longer(43))
    assert http.request(f"{stack.config.url('prefect')}/api/health")[0] == 200
