"""Runs of the deployment `experiment/demo` with services, workers and flows killed under them."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from command_server import TINY_SETTINGS
from services import wait_until

from infra.stack import object_store, processes
from infra.stack import service as services

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
        with suppress(OSError):
            if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return pid
    raise AssertionError(f"no process runs {run_id}")


def kill(stack, name: str) -> None:
    """SIGKILL to every process of a service, as a machine out of memory does."""
    leader = services.running(stack.config, name)
    assert leader is not None
    for each in processes.members(stack.folder, name, leader):
        with suppress(ProcessLookupError):
            os.kill(each.process.pid, signal.SIGKILL)
    wait_until(lambda: services.running(stack.config, name) is None, timeout_s=20, what=f"the end of {name}")


def begin(stack, settings: Sequence[str], **resources: object):
    """A run whose trainings have left a checkpoint."""
    begun = stack.deploy("experiment/demo", settings=settings, resources={"checkpoint_every_steps": 20, **resources})
    assert begun.returncode == 0, begun.stderr
    wait_until(lambda: kept(stack, ".checkpoints/train/"), timeout_s=200, what="a checkpoint")
    return begun


def end(stack, begun) -> dict:
    """The last state of a run."""
    wait_until(lambda: stack.flow_run(begun)["state"]["type"] in ENDED, timeout_s=240, what="the end of the flow")
    return stack.flow_run(begun)["state"]


def finish(stack, settings: Sequence[str]) -> None:
    """The same run again comes through, and leaves neither checkpoint nor training behind."""
    done = stack.deploy("experiment/demo", "--watch", settings=settings)
    assert done.returncode == 0, stack.flow_run(done)["state"]
    assert kept(stack, ".checkpoints/") == []
    assert training(stack) == []
