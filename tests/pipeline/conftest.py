from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_server import TINY, Outcome, Shell, shell


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Path]]:
    folder = tmp_path_factory.mktemp("lab")
    with shell(folder, is_new=True) as run:
        yield run, folder


@pytest.fixture(scope="session")
def experiment(lab: tuple[Shell, Path]) -> tuple[Outcome, Path]:
    """The tiny demo, run once for all tests; its store is ``home/store`` in the folder."""
    run, folder = lab
    outcome = run("run", "demo", *TINY, "--json")
    assert outcome.code == 0, outcome.stderr
    return outcome, folder
