"""An estimate as text."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from flows.terminal.units import bytes_text, count_text
from tasks.ray_calibration import CPU_PREFIX

_BUSY_BELOW = 0.8


def render(estimate: Mapping[str, Any]) -> Iterator[str]:
    """The lines of what ``command.estimate`` returned."""
    yield f"{estimate['recipe']}: {count_text(estimate['runs'], 'run')}, artifacts in {estimate['store']}"
    yield ""
    yield "STAGE        COUNT   THERE       EACH    TOGETHER   STORAGE"
    stages = estimate["stages"]
    total = {name: sum(stage[name] for stage in stages.values()) for name in next(iter(stages.values()))}
    for name, stage in (*((name, stage) for name, stage in stages.items() if stage["count"]), ("all", total)):
        missing = stage["count"] - stage["there"]
        each = f"{stage['seconds'] / missing:,.1f} s" if missing and name != "all" else ""
        yield (
            f"{name:<10}{stage['count']:>8,}{stage['there']:>8,}{each:>11}{_clock(stage['seconds']):>12}"
            f"{bytes_text(stage['bytes']):>10}"
        )
    yield ""
    parts = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in estimate["wall_parts_s"].items())
    yield f"wall-clock:  {_clock(estimate['wall_s'])} on {count_text(estimate['devices'], 'device')} ({parts})"
    yield f"device time: {estimate['device_hours']:,.2f} hours ({estimate['device']})"
    calibration = estimate["calibration"]
    yield (
        f"measured:    in {calibration['seconds']:,.0f} s, {count_text(calibration['kinds'], 'kind')} of work in small"
        f", on {count_text(calibration['at_once'], 'device')} at once, under a load of {calibration['load'][0]:g}"
    )
    if calibration["cpu_frac"] < _BUSY_BELOW and estimate["device"].startswith(CPU_PREFIX):
        yield (
            f"             other work had {1 - calibration['cpu_frac']:.0%} of the CPU's time meanwhile: "
            f"without it the device time is about {estimate['device_hours'] * calibration['cpu_frac']:,.2f} hours"
        )
    yield from (f"             {note}" for note in calibration["notes"])


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
