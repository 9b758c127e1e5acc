"""Fixtures shared by all tests."""

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.seaweedfs import ObjectStore
    from tests.support.service_stack import Stack

_DEPLOYED = ("deployments", "foreign_pages", "observed", "odd_names", "open_services", "pages", "refusals", "secrets")
_SHARED = {
    "stack": ("services", *_DEPLOYED),
    "lab": ("bad_input", "bad_pairs", "estimate", "experiment", "matrix"),
}
"""Fixture of the whole session that takes most of a minute -> files of tests that use it, which one process runs."""
_FOLDERS = ("faults", "pipeline", "contract", "unit")


def _together(nodeid: str) -> str:
    """The group of a test: those of one file, or of all files that share a fixture, run in one process."""
    path = nodeid.partition("::")[0]
    folder, name = path.split("/")[1], path.rpartition("/")[2].removeprefix("test_").removesuffix(".py")
    if folder not in ("faults", "pipeline"):
        return path
    return next((fixture for fixture, names in _SHARED.items() if name in names), path)


def pytest_configure(config: pytest.Config) -> None:
    """What has to be set before a test imports anything; not in the process that only hands out the tests."""
    is_one_of_several = "PYTEST_XDIST_WORKER" in os.environ
    if not is_one_of_several and config.getoption("numprocesses", None):
        return
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU then; read once, when something imports Triton
    if is_one_of_several:
        torch.set_num_threads(1)  # the others have the rest of the cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest groups first, so that the processes end together."""
    groups = {item: _together(item.nodeid) for item in items}
    first = [*_SHARED, *(f"tests/{folder}" for folder in _FOLDERS)]
    items.sort(key=lambda item: next(n for n, start in enumerate((*first, "")) if groups[item].startswith(start)))


def pytest_collection_finish() -> None:
    """Leave what was imported, a million objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)  # as the command line does


def pytest_sessionfinish() -> None:
    """Let the last collections, in which libraries look for what leaks, see everything again."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile` with groups; xdist's own groups (3.8) are lost on pytest 9."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


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
