"""Calibration of cost models on Ray: in the processes where a run's stages would be, as many at once as would run."""

import importlib
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import ray

from ssl_backdoor.errors import TrainingError
from ssl_backdoor.estimate.calibration import Calibrator
from ssl_backdoor.estimate.cost_model import CostModel, LinearCost, StageKind
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import Resources
from tasks.progress_actor import WorkerReporter
from tasks.ray_fit import Listener, ProgressMonitor, cause_of, check_room, connect, devices_of, gpus_each

TITLE = "calibration"
CPU_PREFIX = "CPU of "
"""Begins the name of a device that is not a GPU."""


class CalibrationWorkload(NamedTuple):
    """Kinds of work over a sample of the images of one dataset."""

    kinds: tuple[StageKind, ...]
    images: tuple[bytes, ...]
    num_classes: int

    def calibrate(self, seconds: float, resources: Resources) -> Iterator[tuple[StageKind, CostModel]]:
        """Each kind with its cost model, measured in this process; one kind may take about ``seconds``."""
        with tempfile.TemporaryDirectory(prefix="ssl-backdoor-calibration-") as folder:
            calibrator = Calibrator(Path(folder), self.images, self.num_classes, seconds, resources)
            for kind in self.kinds:
                yield kind, calibrator.cost_model(kind)


class CalibrationResult(NamedTuple):
    """Cost models, and the cluster that they were measured on."""

    models: dict[StageKind, CostModel]
    device: str
    num_devices: int
    """Of the cluster: stages that it runs at once."""
    num_used: int
    """Devices that were measured at the same time."""
    ready_s: float
    """Until every device could begin: joining or starting the cluster, workers, imports."""


def calibrate_on_ray(
    workloads: Sequence[CalibrationWorkload], seconds: float, resources: Resources, max_devices: int, listen: Listener
) -> CalibrationResult:
    """Calibrate on every device at the same time, on ``max_devices`` at most; the result is the mean over devices.

    Devices that share memory and caches slow each other down, here as in a run.

    Args:
        workloads: what is measured.
        seconds: that one kind may take, about.
        resources: as of the run.
        max_devices: devices that the run would have.
        listen: called with the progress.

    Raises:
        SslBackdoorError: what a stage raised.
        TrainingError: a worker ended before it was done.
    """
    began_s = time.perf_counter()
    connect(resources)
    check_room(resources)
    monitor = ProgressMonitor(listen)
    try:
        num_devices = devices_of(resources)
        num_used = min(num_devices, max_devices)
        options = {"num_cpus": resources.threads, "num_gpus": gpus_each(resources)}
        reporters = [WorkerReporter(monitor.actor(), TITLE), *[None] * (num_used - 1)]
        devices = ray.get([_import_stages.options(**options).remote() for _ in reporters])
        ready_s = time.perf_counter() - began_s
        work = [
            _calibrate.options(**options).remote(tuple(workloads), seconds, resources, reporter)
            for reporter in reporters
        ]
        results = ray.get(work)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    except ray.exceptions.RayError as error:
        raise TrainingError(f"the calibration's worker ended ({type(error).__name__}); is memory short?") from error
    finally:
        monitor.close()
    models = {kind: _mean([result[kind] for result in results]) for kind in results[0]}
    return CalibrationResult(models, devices[0], num_devices, num_used, ready_s)


@ray.remote
def _import_stages() -> str:
    """Import what stages need; the device's name."""
    import torch

    for name in ("ssl_backdoor.evaluate.evaluate", "ssl_backdoor.train.pretrain"):
        importlib.import_module(name)
    return torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()


def _cpu_name() -> str:
    try:  # psutil does not tell the model
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{CPU_PREFIX}{next(names, '') or platform.processor() or platform.machine()}"


@ray.remote(max_retries=0)
def _calibrate(
    workloads: Sequence[CalibrationWorkload], seconds: float, resources: Resources, reporter: WorkerReporter | None
) -> dict[StageKind, CostModel]:
    models: dict[StageKind, CostModel] = {}
    total = sum(len(workload.kinds) for workload in workloads)
    for workload in workloads:
        for kind, model in workload.calibrate(seconds, resources):
            models[kind] = model
            if reporter is not None:
                reporter(Progress(len(models), total, "kinds of work"))
    return models


def _mean(models: Sequence[CostModel]) -> CostModel:
    fixed, per_unit = (fmean(values) for values in zip(*(model.seconds for model in models), strict=True))
    cpu_frac = fmean(model.cpu_frac for model in models)
    return models[0]._replace(seconds=LinearCost(fixed, per_unit), cpu_frac=cpu_frac)
