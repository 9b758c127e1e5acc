"""Runs of the deployment `experiment/demo` with services, workers and flows killed under them."""

import os
import signal
from collections.abc import Mapping
from contextlib import closing, suppress
from functools import cache
from typing import Any

from psycopg2 import sql

from infra.stack import object_store, postgres, processes
from infra.stack import service as services
from tests.support.cli_process import marked
from tests.support.command_server import TINY_SETTINGS
from tests.support.waiting import wait_until

Asked = Mapping[str, Any]


def small(seed: int, *settings: str) -> dict[str, Any]:
    """The demo's pair alone, not defended, with trainings of some ten seconds. Seeds have a suspect each."""
    of_training = [one for one in TINY_SETTINGS if not one.startswith("defences.")]
    longer = ["train.fit.batch_size=8", "train.fit.epochs=20", f"attack.trigger.seed={seed}"]
    return {"methods": "byol", "defences": [], "settings": [*of_training, *longer, *settings]}


@cache
def _reader(stack) -> Any:
    return object_store.client(stack.config, "reader")  # takes a seventh of a second to make


def kept(stack, prefix: str) -> set[str]:
    """Keys of the store under ``prefix``."""
    pages = _reader(stack).get_paginator("list_objects_v2")
    found = pages.paginate(Bucket="artifacts", Prefix=f"lab/{prefix}")
    return {entry["Key"] for page in found for entry in page.get("Contents", ())}


def training(stack) -> list[int]:
    return [pid for pid, title in stack.titles().items() if title.startswith("ray::train")]


def flow_process(run: str) -> int:
    """The process in which the worker runs a flow."""
    return min(pid for pid, title in marked(f"PREFECT__FLOW_RUN_ID={run}").items() if "prefect.engine" in title)


def kill(stack, name: str) -> None:
    """SIGKILL to every process of a service, as a machine out of memory does; flows are of the worker."""
    leader = services.running(stack.config, name)
    assert leader is not None
    for each in processes.members(stack.folder, name, leader):
        with suppress(ProcessLookupError):
            os.kill(each.process.pid, signal.SIGKILL)
    wait_until(lambda: services.running(stack.config, name) is None, timeout_s=60, what=f"the end of {name}")


def drop_database(stack, name: str) -> None:
    """As if its disk had been lost; `up` makes an empty one."""
    password = stack.config.secrets["postgres_password"]
    with closing(postgres.connect(stack.config, "postgres", password, "postgres")) as database:
        database.cursor().execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def begin(stack, asked: Asked, **resources: object) -> str:
    """Ask for a run; its id, once its trainings have left a checkpoint that was not there before."""
    before = kept(stack, ".checkpoints/train/")
    run = stack.queue("experiment/demo", {**asked, "resources": {"checkpoint_every_steps": 20, **resources}})
    wait_until(lambda: kept(stack, ".checkpoints/train/") - before, timeout_s=400, what="a checkpoint")
    return run


def last_state(stack, run: str) -> tuple[str, str]:
    """How a run ended, which leaves no training behind, and what it says of it."""
    state = stack.ended(run, timeout_s=400)[0]["state"]
    wait_until(lambda: not training(stack), timeout_s=180, what="the trainings to end")
    return state["type"], state["message"]


def finish(stack, asked: Asked, times: int = 1) -> list[dict]:
    """The same asked for again, so often at once, comes through, and leaves neither checkpoint nor training behind."""
    runs = stack.ended(*(stack.queue("experiment/demo", asked) for _ in range(times)), timeout_s=600)
    assert {run["state"]["type"] for run in runs} == {"COMPLETED"}, [run["state"]["message"] for run in runs]
    assert kept(stack, ".checkpoints/") == set()
    assert training(stack) == []
    return runs
