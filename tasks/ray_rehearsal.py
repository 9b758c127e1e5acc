"""The dress rehearsal on Ray: in the processes where a run's stages would be, as many at once as would run."""

import importlib
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import ray

from ssl_backdoor.errors import TrainingError
from ssl_backdoor.progress import Progress
from ssl_backdoor.rehearsal import Kind, Line, Pace, Rehearsal
from ssl_backdoor.specs import Resources
from tasks.ray_fit import Listener, Watcher, cause_of, check_room, connect, devices_of, gpus_each
from tasks.wire import Wire

TITLE = "rehearsal"
PROCESSOR = "CPU of "
"""Begins the name of a device that is no GPU."""


class Scene(NamedTuple):
    """Kinds of work over images that stand for those of one dataset."""

    kinds: tuple[Kind, ...]
    images: tuple[bytes, ...]
    num_classes: int


class Rehearsed(NamedTuple):
    """What was found, and how."""

    paces: dict[Kind, Pace]
    device: str
    num_devices: int
    """Of the cluster: stages that it runs at once."""
    at_once: int
    """How many rehearsed side by side."""
    ready_s: float
    """From nothing until every device could begin: joining or starting the cluster, workers, imports."""


def rehearse_on_ray(
    scenes: Sequence[Scene], seconds: float, resources: Resources, most_at_once: int, listen: Listener
) -> Rehearsed:
    """Rehearse on as many devices as there are, ``most_at_once`` at most; paces are means over them.

    Devices that work side by side slow each other where they share memory and caches; so it is in a run.

    Args:
        scenes: what is rehearsed.
        seconds: that one kind may take, about.
        resources: as of the run.
        most_at_once: devices that the run would have.
        listen: hears how far it is.

    Raises:
        SslBackdoorError: what a stage raised.
        TrainingError: a worker ended before it was done.
    """
    began_s = time.perf_counter()
    connect(resources)
    check_room(resources)
    watcher = Watcher(listen)
    try:
        num_devices = devices_of(resources)
        at_once = min(num_devices, most_at_once)
        places = {"num_cpus": resources.threads, "num_gpus": gpus_each(resources)}
        wires = [Wire(watcher.board(), TITLE), *[None] * (at_once - 1)]
        devices = ray.get([_ready.options(**places).remote() for _ in wires])
        ready_s = time.perf_counter() - began_s
        work = [_rehearse.options(**places).remote(tuple(scenes), seconds, resources, wire) for wire in wires]
        found = ray.get(work)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    except ray.exceptions.RayError as error:
        raise TrainingError(f"the rehearsal's worker ended ({type(error).__name__}); is memory short?") from error
    finally:
        watcher.close()
    paces = {kind: _mean([one[kind] for one in found]) for kind in found[0]}
    return Rehearsed(paces, devices[0], num_devices, at_once, ready_s)


@ray.remote
def _ready() -> str:
    """Import what stages need; the device."""
    import torch

    for name in ("ssl_backdoor.evaluate.evaluate", "ssl_backdoor.train.pretrain"):
        importlib.import_module(name)
    return torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{PROCESSOR}{next(names, '') or platform.processor() or platform.machine()}"


@ray.remote(max_retries=0)
def _rehearse(scenes: Sequence[Scene], seconds: float, resources: Resources, wire: Wire | None) -> dict[Kind, Pace]:
    found: dict[Kind, Pace] = {}
    total = sum(len(scene.kinds) for scene in scenes)
    for scene in scenes:
        with tempfile.TemporaryDirectory(prefix="ssl-backdoor-rehearsal-") as folder:
            rehearsal = Rehearsal(Path(folder), scene.images, scene.num_classes, seconds, resources)
            for kind in scene.kinds:
                found[kind] = rehearsal.pace(kind)
                if wire is not None:
                    wire(Progress(len(found), total, "kinds of work"))
    return found


def _mean(paces: Sequence[Pace]) -> Pace:
    once, each = (fmean(values) for values in zip(*(pace.seconds for pace in paces), strict=True))
    return paces[0]._replace(seconds=Line(once, each), cpu_frac=fmean(pace.cpu_frac for pace in paces))
