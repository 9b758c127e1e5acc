"""A shell is ended wherever it is: nothing outlives it, and the same command resumes."""

import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.plan import plan
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.stages import IngestStage, PoisonStage, StageCall, run_stage
from ssl_backdoor.store import open_store
from tests.support import cli_killed_in_commit, cli_with_few_retries
from tests.support.cli_process import begin, left_of, nothing_left_of
from tests.support.command_server import TINY, TINY_SETTINGS
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
BYOL = ("demo", *TINY, "--methods", "byol")
POISON = ("poison", *BYOL)
LONG = ("train", *BYOL, "--set", "train.fit.batch_size=8", "--set", "train.fit.epochs=20")
"""Two trainings of 500 steps, with a checkpoint in the middle of each."""


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("home/store/.checkpoints/train/*/*.ckpt"))


def until_it_trains(shell, folder: Path) -> None:
    """In the middle of its trainings, one of which has left a checkpoint."""

    def underway() -> bool:
        assert shell.poll() is None, shell.communicate()
        return bool(checkpoints(folder)) and any(title.startswith("ray::train") for title in left_of(folder).values())

    wait_until(underway, timeout_s=400, what="a training with a checkpoint")


def done(shell) -> str:
    """What a command that came through said on stderr."""
    err = shell.communicate(timeout=600)[1]
    assert shell.returncode == 0, err
    return err


def states(folder: Path, table: str) -> list[str]:
    """Names of the last or, with ``_state``, of all states that Prefect kept, in their order."""
    order = "timestamp" if table.endswith("_state") else "created"
    column = "name" if table.endswith("_state") else "state_name"
    with closing(sqlite3.connect(folder / "home" / "prefect" / "prefect.db")) as database:
        return [name for (name,) in database.execute(f"SELECT {column} FROM {table} ORDER BY {order}")]


def test_a_shell_that_is_told_to_end_or_killed_leaves_no_process_and_the_same_command_goes_on(tmp_path):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with begin(tmp_path, *LONG) as shell:
            until_it_trains(shell, tmp_path)
            os.killpg(shell.pid, number)  # as a terminal and `timeout` do
            out, err = shell.communicate(timeout=180)
        assert (shell.returncode, out) == (code, "")
        *progress, told = filter(None, err.splitlines())
        assert told == (
            "ssl-backdoor: interrupted; finished stages and checkpoints are kept; run the same command again to resume"
        )
        assert all(re.match(r"\d\d:\d\d:\d\d \w+ ", line) for line in progress), err
        nothing_left_of(tmp_path)
        assert checkpoints(tmp_path)
    with begin(tmp_path, *LONG) as shell:
        until_it_trains(shell, tmp_path)
        titles = " ".join(left_of(tmp_path).values())
        assert "tasks.prefect_server" in titles
        assert "raylet" in titles
        shell.kill()
        shell.communicate()
    nothing_left_of(tmp_path)
    assert states(tmp_path, "flow_run") == ["Crashed", "Crashed", "Running"]
    with begin(tmp_path, *LONG) as shell:
        done(shell)
    assert states(tmp_path, "flow_run") == ["Crashed", "Crashed", "Crashed", "Completed"]
    assert checkpoints(tmp_path) == []
    assert len(list(tmp_path.glob("home/store/train/*/manifest.json"))) == 2


def test_a_shell_killed_in_the_middle_of_a_commit_leaves_nothing_to_be_found(
    tmp_path, environment, prefix, object_store
):
    store = open_store(f"s3://{object_store.bucket}/{prefix}")
    killed = Path(cli_killed_in_commit.__file__)
    with begin(tmp_path, "poison", *POISON, "--store", store.root, program=killed) as shell:
        shell.communicate(timeout=400)
    assert shell.returncode == 128 + signal.SIGKILL
    parts = object_store.keys(f"{prefix}/poison/")
    assert parts
    assert store.keys("poison") == ()
    nothing_left_of(tmp_path)
    with begin(tmp_path, *POISON, "--store", store.root) as shell:
        done(shell)
    calm, (run,) = open_store(str(tmp_path / "calm")), plan("demo", methods="byol", settings=TINY_SETTINGS).runs
    source = source_digest(run.dataset, None)
    images = run_stage(StageCall(IngestStage(dataset=run.dataset), source=source), calm).ref
    run_stage(StageCall(PoisonStage(attack=run.attack, seed=run.seed), {"dataset": images}), calm)
    for stage in ("ingest", "poison"):
        assert store.keys(stage) == calm.keys(stage) != ()
        for key in calm.keys(stage):
            assert store.manifest(store.ref(stage, key)).digest == calm.manifest(calm.ref(stage, key)).digest


def test_a_store_that_is_away_for_a_while_is_waited_for(tmp_path, environment, prefix, object_store):
    place = f"s3://{object_store.bucket}/{prefix}"
    with fault_proxy(object_store.endpoint) as proxy:
        proxy.add(Fault("get", "refuse", times=6, ending="manifest.json"))  # two looks before the flow, and one in it
        impatient, address = Path(cli_with_few_retries.__file__), {"AWS_ENDPOINT_URL": proxy.endpoint}
        with begin(tmp_path, *POISON, "--store", place, program=impatient, **address) as shell:
            told = done(shell)
    assert "waits, then tries again: " in told
    assert "503" in told
    told = states(tmp_path, "task_run_state")
    assert told.count("AwaitingRetry") == told.count("Retrying") == 1
    assert states(tmp_path, "flow_run") == ["Completed"]
