from collections.abc import Iterator
from pathlib import Path

import pytest
from command_server import TINY, TINY_SETTINGS, Outcome, Shell, shell
from stack_shell import Stack, running_stack


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Path]]:
    folder = tmp_path_factory.mktemp("lab")
    with shell(folder) as run:
        yield run, folder


@pytest.fixture(scope="session")
def experiment(lab: tuple[Shell, Path]) -> tuple[Outcome, Path]:
    """The tiny demo, run once for all tests; its store is ``home/store`` in the folder."""
    run, folder = lab
    outcome = run("run", "demo", *TINY, "--json")
    assert outcome.code == 0, outcome.stderr
    return outcome, folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services of `make up`. Never stop them; one that is killed is brought back with `up`."""
    with running_stack(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="session")
def demo(stack: Stack) -> dict:
    """The tiny demo, run by the worker; its flow run."""
    done = stack.deploy("experiment/demo", "--watch", settings=TINY_SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr + stack.log("worker")
    return stack.flow_run(done)
