"""Speed and use of the machine: of known clocks and files, and of a real training beside the clock."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_backdoor.methods.base import Batch
from ssl_backdoor.train import meter as module
from ssl_backdoor.train.meter import MAX_POINTS, Meter, format_summary

CPU = torch.device("cpu")


class _Machine:
    """Clocks and memory that move when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.wall_s = self.cpu_s = 100.0
        self._status = folder / "status"
        self.memory(resident=50, peak=400)
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.wall_s)
        monkeypatch.setattr(module.time, "process_time", lambda: self.cpu_s)
        monkeypatch.setattr(module.time, "time", lambda: 1.7e9 + self.wall_s)
        monkeypatch.setattr(module, "_STATUS", self._status)

    def memory(self, resident: int, peak: int) -> None:
        self._status.write_text(f"Name:\tpython\nVmPeak:\t9 kB\nVmHWM:\t  {peak} kB\nVmRSS:\t {resident} kB\n")

    def passes(self, wall_s: float, cpu_s: float = 0.0) -> None:
        self.wall_s += wall_s
        self.cpu_s += cpu_s


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Machine:
    return _Machine(monkeypatch, tmp_path)


def train(meter: Meter, machine: _Machine, first: int, num_steps: int, wait_s: float, step_s: float) -> None:
    def batches(step: int) -> Batch:
        machine.passes(wait_s)
        return Batch((Tensor(),), step)

    timed = meter.time_batches(batches)
    for step in range(first, num_steps):
        assert timed(step).step == step
        machine.passes(step_s, cpu_s=step_s)
        meter.record_step(step + 1)


def test_means_of_the_whole_and_of_each_stretch(machine: _Machine) -> None:
    meter = Meter(0, 4, batch_size=60, threads=2, device=CPU)
    train(meter, machine, 0, 2, wait_s=0.5, step_s=1.5)
    machine.memory(resident=70, peak=400)
    train(meter, machine, 2, 4, wait_s=1.0, step_s=1.0)
    summary = meter.summary()
    assert summary == {
        "images_per_second": 30.0,
        "performance": {
            "first_step": 0,
            "step_s": 2.0,
            "data_wait_frac": 0.375,
            "cpu_frac": 0.3125,
            "peak_resident_bytes": 70 * 1024,
            "series": {
                "step": [0, 1, 2, 3],
                "unix_s": [1.7e9 + 102.0, 1.7e9 + 104.0, 1.7e9 + 106.0, 1.7e9 + 108.0],
                "images_per_second": [30.0] * 4,
                "step_s": [2.0] * 4,
                "data_wait_frac": [0.25, 0.25, 0.5, 0.5],
                "cpu_frac": [0.375, 0.375, 0.25, 0.25],
                "resident_bytes": [51200, 51200, 71680, 71680],
            },
        },
    }
    told = format_summary(summary)
    assert told == (
        "trained at 30 images/s, 2 s a step, 38% of it waiting for data, 31% of its threads busy, 0 MB resident at most"
    )


def test_the_peak_is_the_kernels_where_this_training_set_it(machine: _Machine) -> None:
    meter = Meter(0, 2, batch_size=60, threads=1, device=CPU)
    machine.memory(resident=60, peak=401)
    train(meter, machine, 0, 2, wait_s=0.0, step_s=1.0)
    assert meter.summary()["performance"]["peak_resident_bytes"] == 401 * 1024


@pytest.mark.parametrize(("first", "num_steps"), [(0, 1), (0, 61), (0, 10_000), (9_000, 10_000), (40, 99)])
def test_few_points_to_the_end_from_where_it_was_taken_up(machine: _Machine, first: int, num_steps: int) -> None:
    meter = Meter(first, num_steps, batch_size=1, threads=1, device=CPU)
    train(meter, machine, first, num_steps, wait_s=0.0, step_s=1.0)
    performance = meter.summary()["performance"]
    steps = performance["series"]["step"]
    assert performance["first_step"] == first
    assert min(num_steps - first, MAX_POINTS // 2) <= len(steps) <= MAX_POINTS
    assert (steps == sorted(steps), steps[0] >= first, steps[-1]) == (True, True, num_steps - 1)


def test_the_machine_is_not_asked_more_than_once_a_second(machine: _Machine) -> None:
    meter = Meter(0, 60, batch_size=1, threads=1, device=CPU)
    train(meter, machine, 0, 60, wait_s=0.0, step_s=0.125)
    ends = meter.summary()["performance"]["series"]["unix_s"]
    assert [end - 1.7e9 - 100 for end in ends] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5]


@pytest.mark.parametrize("status", [None, b"Name:\t\xffpython\nThreads:\t1\n"])
def test_where_the_system_does_not_tell_there_is_no_memory(
    machine: _Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: bytes | None
) -> None:
    monkeypatch.setattr(module, "_STATUS", tmp_path / "other")
    if status is not None:
        (tmp_path / "other").write_bytes(status)
    meter = Meter(0, 1, batch_size=1, threads=1, device=CPU)
    train(meter, machine, 0, 1, wait_s=0.0, step_s=1.0)
    performance = meter.summary()["performance"]
    assert "peak_resident_bytes" not in performance
    assert "resident_bytes" not in performance["series"]
    assert "MB" not in format_summary(meter.summary())


@pytest.mark.parametrize("has_nvml", [True, False])
def test_a_gpu_is_asked_for_its_memory_and_where_it_can_for_its_use(
    machine: _Machine, monkeypatch: pytest.MonkeyPatch, has_nvml: bool
) -> None:
    uses = iter([80, 40])

    def utilization(device: torch.device) -> int:
        if not has_nvml:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return next(uses)

    def forbidden(*_: Any) -> None:
        raise AssertionError("the device was waited for")

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "synchronize", forbidden)
    meter = Meter(0, 2, batch_size=1, threads=1, device=torch.device("cuda", 0))
    train(meter, machine, 0, 2, wait_s=0.0, step_s=1.0)
    performance = meter.summary()["performance"]
    assert performance["peak_gpu_bytes"] == 2_000_000
    assert performance["series"]["gpu_bytes"] == [3_000_000, 3_000_000]
    assert performance.get("gpu_frac") == (0.6 if has_nvml else None)
    assert performance["series"].get("gpu_frac") == ([0.8, 0.4] if has_nvml else None)
    assert ("the GPU busy 60%" in format_summary(meter.summary())) == has_nvml


def test_a_step_costs_few_looks_at_the_clock_and_seldom_one_at_the_machine(monkeypatch) -> None:
    looks, memory = 0, module._memory_bytes
    asked: list[str] = []

    def look() -> float:
        nonlocal looks
        looks += 1
        return looks * 1e-4

    monkeypatch.setattr(module.time, "perf_counter", look)
    monkeypatch.setattr(module, "_memory_bytes", lambda name: (asked.append(name), memory(name))[1])
    num_steps = 20_000
    meter, made = Meter(0, num_steps, batch_size=1, threads=1, device=CPU), Batch((Tensor(),), 0)
    timed = meter.time_batches(lambda step: made)
    for step in range(num_steps):
        timed(step)
        meter.record_step(step + 1)
    assert looks <= 3 * num_steps
    assert meter.summary()["performance"]["peak_resident_bytes"] > 50e6
    assert len(asked) <= 2 + module.MAX_POINTS
