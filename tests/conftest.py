"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU then; read once, when something imports Triton

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the others have the rest of the cores

if TYPE_CHECKING:
    from tests.support.seaweedfs import ObjectStore
    from tests.support.service_stack import Stack


_SHARED = ("stack", "lab")
"""Fixtures that take most of a minute: what uses one runs in one process."""
_FOLDERS = ("faults", "pipeline", "contract", "unit")
"""Longest first, so that the processes end together."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what xdist keeps together (`--dist loadgroup`), and in which order it begins that.

    A file stays together; so do all tests, of whatever file, that use a server of the whole session.
    """
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    order = {name: number for number, name in enumerate((*_SHARED, *_FOLDERS))}
    items.sort(key=lambda item: order.get(groups[item].split("/")[0], len(order)))


def _group(item: pytest.Item) -> str:
    used = [name for name in _SHARED if _is_of_session(item, name)]
    return used[0] if used else str(item.path.relative_to(Path(__file__).parent))


def _is_of_session(item: pytest.Item, name: str) -> bool:
    found = getattr(item, "_fixtureinfo").name2fixturedefs.get(name, ())  # noqa: B009  pytest has no public way
    return bool(found) and found[-1].scope == "session"


@pytest.fixture(scope="session")
def object_store() -> Iterator["ObjectStore"]:
    """A real SeaweedFS for the whole session. Give each test a prefix of its own; never stop this one."""
    from tests.support.seaweedfs import object_store_server

    with object_store_server() as server:
        yield server


@pytest.fixture
def environment(object_store, tmp_path, monkeypatch) -> dict[str, str]:
    """The AWS variables of the session's object store, and a cache of this test's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    found = {**object_store.environment, "SSL_BACKDOOR_CACHE": str(tmp_path / "cache")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stack"]:
    """The services of `make up`. Never stop them; one that is killed is brought back with `up`."""
    from tests.support.service_stack import running_stack

    with running_stack(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="session")
def demo(stack: "Stack") -> dict:
    """The tiny demo, run by the worker; its flow run."""
    from tests.support.command_server import DEMO_SETTINGS

    done = stack.deploy("experiment/demo", "--watch", settings=DEMO_SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr + stack.log("worker")
    return stack.flow_run(done)
