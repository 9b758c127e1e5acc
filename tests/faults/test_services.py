"""A service or a flow is killed while a deployment runs: what was done is kept, the same run again comes through."""

import os
import signal
import time

import pytest
from command_server import TINY_SETTINGS
from deployed import begin, end, finish, flow_process, kill, longer, training
from services import wait_until

from infra.stack import http

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_killed_flow_takes_its_trainings_along_and_goes_on(stack):
    begun = begin(stack, longer(41))
    os.kill(flow_process(stack, stack.flow_run(begun)["id"]), signal.SIGKILL)
    assert end(stack, begun)["type"] == "CRASHED"
    wait_until(lambda: not training(stack), timeout_s=30, what="the trainings to end")
    finish(stack, longer(41))


def test_a_killed_object_store_ends_the_run_with_a_sentence(stack):
    begun = begin(stack, longer(42), store_retries=0)
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
