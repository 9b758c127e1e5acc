from collections.abc import Iterator
from pathlib import Path

import pytest
from command_server import Shell, shell


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Path]]:
    folder = tmp_path_factory.mktemp("lab")
    with shell(folder) as run:
        yield run, folder
