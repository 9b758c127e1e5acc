"""Runs `ssl-backdoor` commands one after another in one process, so that imports are paid once; see `Shell`."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.terminal.reaper import run_and_reap_children

TINY_SETTINGS = (
    "dataset.source.train_per_class=40",
    "dataset.source.test_per_class=20",
    "dataset.source.side_px=32",
    "train.fit.epochs=1",
    "train.fit.batch_size=64",
    "defences.*.fit.batch_size=64",
    "defences.*.fit.epochs=2",
    "defences.*.trusted_fraction=0.5",
    "defences.*.queue_size=64",
)
"""The demo at a size that takes seconds."""
TINY = tuple(part for setting in TINY_SETTINGS for part in ("--set", setting))
DEMO_SETTINGS = (*TINY_SETTINGS, "dataset.source.seed=12")
"""The same on images of its own: what the fixture ``demo`` runs was made by no test before it."""


_IS_EVENT = re.compile(r"\d\d:\d\d:\d\d ")  # such as how an ingest understood the data


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str


class Shell:
    """A process that runs commands in ``folder`` with its own home folder there."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, *arguments: str | Path) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        return Outcome(*json.loads(self._process.stdout.readline()))


def refused_input(outcome: Outcome, store: Path) -> str:
    """The one sentence of a refusal, after checking exit code 2 and that ``store`` holds no half-written artifact."""
    assert outcome.code == 2, outcome
    lines = [line for line in outcome.stderr.splitlines() if line.strip() and not _IS_EVENT.match(line)]
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("ssl-backdoor: ")
    assert outcome.stdout == ""
    assert {path.parent.parent.name for path in store.rglob("manifest.json")} <= {"ingest"}  # images may be fine
    assert not [folder for folder in store.rglob(".*") if folder.is_dir() and any(folder.iterdir())]
    return lines[0]


@contextlib.contextmanager
def shell(folder: Path, *, is_new: bool = False, **environment: str) -> Iterator[Shell]:
    """A ``Shell``; a new one's first run has to make Prefect's database."""
    from tests.support.prefect_home import give_database  # not of the process, which runs this file alone

    if not is_new:
        give_database(folder / "home")
    env = {**os.environ, "SSL_BACKDOOR_HOME": str(folder / "home"), **environment}
    with subprocess.Popen(
        [sys.executable, __file__], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Shell(process)
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def _captured(arguments: Sequence[str]) -> Outcome:
    from flows.cli import main

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = 0
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
        for file in (out, err):
            file.seek(0)
        return Outcome(code, out.read(), err.read())


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_captured(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    run_and_reap_children(main)
