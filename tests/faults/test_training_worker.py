"""A training worker is killed; the training goes on from its checkpoint and ends as if nothing had happened."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from command_server import TINY, Shell, shell
from services import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
# 12 steps an epoch, 720 in all: a checkpoint after 250 and after 500.
LONGER = (*TINY, "--set", "train.fit.batch_size=16", "--set", "train.fit.epochs=60")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Path]]:
    folder = tmp_path_factory.mktemp("faults")
    with shell(folder) as run:
        yield run, folder


def processes(title: str, folder: Path) -> list[int]:
    """Ids of the processes whose title begins so and that belong to the shell in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                titled = (entry / "cmdline").read_bytes().startswith(title.encode())
                if titled and f"SSL_BACKDOOR_HOME={folder}/".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def kill_once(store: Path, victims: Callable[[], list[int]]) -> int:
    """SIGKILL the first of ``victims`` as soon as every training has a checkpoint."""

    def ready() -> bool:
        return len(list(store.glob(".checkpoints/train/*/step-*.ckpt"))) >= 1 and bool(victims())

    wait_until(ready, timeout_s=240, what="a checkpoint")
    victim = victims()[0]
    os.kill(victim, signal.SIGKILL)
    return victim


def encoders(store: Path) -> dict[str, str]:
    return {
        file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in store.glob("train/*/backbone.safetensors")
    }


@pytest.mark.parametrize(
    ("arguments", "title"),
    [((), "ray::train"), (("--workers", "2", "--set", "train.fit.bn_groups=2"), "ray::RayTrainWorker")],
    ids=["one replica", "two replicas"],
)
def test_killed_worker_resumes_and_changes_nothing(lab, tmp_path, arguments, title):
    run, folder = lab
    store, calm = tmp_path / "store", tmp_path / "calm"
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_once, store, lambda: processes(title, folder))
        outcome = run("train", "demo", *LONGER, *arguments, "--store", store)
        assert outcome.code == 0, outcome.stderr
        assert killed.result(timeout=1) > 0
    assert not list(store.glob(".checkpoints/train/*/*.ckpt"))
    assert run("train", "demo", *LONGER, *arguments, "--store", calm).code == 0
    assert encoders(store) == encoders(calm)
    assert len(encoders(store)) == 2


def test_interrupt_keeps_what_is_done(tmp_path):
    store = tmp_path / "store"
    with shell(tmp_path) as run, ThreadPoolExecutor(1) as pool:

        def interrupt() -> None:
            wait_until(lambda: list(store.glob(".checkpoints/train/*/*.ckpt")), timeout_s=240, what="a checkpoint")
            run.interrupt()

        pressed = pool.submit(interrupt)
        outcome = run("train", "demo", *LONGER, "--store", store)
        pressed.result(timeout=1)
        assert outcome.code == 130, outcome
        assert "the same command goes on" in outcome.stderr
        assert list(store.glob(".checkpoints/train/*/*.ckpt"))
        wait_until(lambda: not processes("ray::train", tmp_path), timeout_s=20, what="the workers to end")
        assert run("train", "demo", *LONGER, "--store", store).code == 0
        assert len(encoders(store)) == 2
