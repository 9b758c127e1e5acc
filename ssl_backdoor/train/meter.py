"""Throughput of a training and its use of the machine.

Not part of the result: it is in no key and no file, only in the manifest's summary, next to ``seconds``. A step reads
the clock three times; the machine is queried at most once a second, and the device is never synchronised.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssl_backdoor.methods.base import Batch

MAX_POINTS = 60
MIN_POINT_S = 1.0
_STATUS = Path("/proc/self/status")


class _Moment(NamedTuple):
    steps: int
    wall_s: float
    cpu_s: float
    waited_s: float


class Meter:
    """Means over at most ``MAX_POINTS`` stretches of steps, each of a second or more in all but the shortest trainings.

    For this process, since training (re)started; images are those of all replicas.
    """

    def __init__(self, first_step: int, num_steps: int, batch_size: int, threads: int, device: torch.device) -> None:
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._threads = threads
        self._device = device
        self._stride = math.ceil((num_steps - first_step) / MAX_POINTS)
        self._waited_s = 0.0
        self._points: list[dict[str, float | None]] = []
        self._peak_before = _memory_bytes("VmHWM")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._moments = [self._now(first_step)]

    def time_batches(self, batches: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """``batches``, with its time counted as waiting for data."""

        def batch(step: int) -> Batch:
            asked_s = time.perf_counter()
            made = batches(step)
            self._waited_s += time.perf_counter() - asked_s
            return made

        return batch

    def record_step(self, steps: int) -> None:
        """Record that ``steps`` steps of the training are done."""
        is_last = steps == self._num_steps
        if not is_last and (steps - self._moments[0].steps) % self._stride:
            return
        is_short = time.perf_counter() - self._moments[-1].wall_s < MIN_POINT_S
        if is_short and not is_last:
            return
        if is_short and self._points:  # the last steps belong to the stretch before them
            self._points.pop()
            self._moments.pop()
        now = self._now(steps)
        self._points.append(self._point(self._moments[-1], now))
        self._moments.append(now)

    def summary(self) -> dict[str, Any]:
        """Of the whole, and of each stretch, after the last step.

        ``images_per_second``; and under ``performance``: ``first_step`` (steps that an earlier process had done),
        ``step_s`` (mean, checkpoints included), ``data_wait_frac`` (share of the time from asking for a batch until it
        is there: reading, decoding and, on the CPU, making views), ``cpu_frac`` (CPU seconds of the process per second
        and thread that it was given), ``peak_resident_bytes``, on CUDA ``gpu_frac`` (share of the time that the device
        was busy, where NVML says so; mean) and ``peak_gpu_bytes`` (allocated). ``series`` has a list for each of
        ``step`` (index of the stretch's last step), ``unix_s`` (its end), ``images_per_second``, ``step_s``,
        ``data_wait_frac``, ``cpu_frac``, ``resident_bytes``, and on CUDA ``gpu_frac`` and ``gpu_bytes`` (reserved).
        """
        whole = self._rates(self._moments[0], self._moments[-1])
        performance: dict[str, Any] = {"first_step": self._moments[0].steps}
        performance |= {name: whole[name] for name in ("step_s", "data_wait_frac", "cpu_frac")}
        performance["peak_resident_bytes"] = self._peak_bytes()
        if self._device.type == "cuda":
            used = [value for point in self._points if (value := point["gpu_frac"]) is not None]
            performance["gpu_frac"] = _short(sum(used) / len(used)) if used else None
            performance["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self._device)
        series = {name: [point[name] for point in self._points] for name in self._points[0]}
        known = {name: values for name, values in series.items() if any(value is not None for value in values)}
        performance = {name: value for name, value in performance.items() if value is not None}
        return {"images_per_second": whole["images_per_second"], "performance": performance | {"series": known}}

    def _now(self, steps: int) -> _Moment:
        return _Moment(steps, time.perf_counter(), time.process_time(), self._waited_s)

    def _rates(self, since: _Moment, now: _Moment) -> dict[str, float]:
        steps, wall_s = now.steps - since.steps, now.wall_s - since.wall_s
        return {
            "images_per_second": _short(steps * self._batch_size / wall_s),
            "step_s": _short(wall_s / steps),
            "data_wait_frac": _short((now.waited_s - since.waited_s) / wall_s),
            "cpu_frac": _short((now.cpu_s - since.cpu_s) / wall_s / self._threads),
        }

    def _point(self, since: _Moment, now: _Moment) -> dict[str, float | None]:
        point: dict[str, float | None] = {"step": now.steps - 1, "unix_s": round(time.time(), 3)}
        point |= self._rates(since, now)
        point["resident_bytes"] = _memory_bytes("VmRSS")
        if self._device.type == "cuda":
            point["gpu_frac"] = _gpu_frac(self._device)
            point["gpu_bytes"] = torch.cuda.memory_reserved(self._device)
        return point

    def _peak_bytes(self) -> int | None:
        """The kernel's own mark, unless an earlier work of this process has set it; then the highest seen."""
        peak = _memory_bytes("VmHWM")
        if peak is None or self._peak_before is None or peak > self._peak_before:
            return peak
        return _most(point["resident_bytes"] for point in self._points)


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary of a ``Meter`` for a log."""
    performance = summary["performance"]
    parts = [
        f"trained at {summary['images_per_second']:,.0f} images/s",
        f"{performance['step_s']:.3g} s a step",
        f"{performance['data_wait_frac']:.0%} of it waiting for data",
        f"{performance['cpu_frac']:.0%} of its threads busy",
    ]
    for name, text in (("peak_resident_bytes", "MB resident at most"), ("peak_gpu_bytes", "MB of the GPU at most")):
        if name in performance:
            parts.append(f"{performance[name] / 1e6:,.0f} {text}")
    if "gpu_frac" in performance:
        parts.append(f"the GPU busy {performance['gpu_frac']:.0%}")
    return ", ".join(parts)


def _memory_bytes(name: str) -> int | None:
    """A line of Linux's account of this process, such as VmRSS; None where there is none, as in some sandboxes.

    Read here because psutil lacks the peak (VmHWM), and getrusage's peak counts what ran before exec too.
    """
    try:
        status = _STATUS.read_text(encoding="utf-8", errors="replace")  # a process may be called anything
    except OSError:
        return None
    found = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _gpu_frac(device: torch.device) -> float | None:
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # no nvidia-ml-py, no right to ask, or a slice of a GPU, which has no such figure
        return None


def _most(values: Iterable[float | None]) -> int | None:
    return max((int(value) for value in values if value is not None), default=None)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
