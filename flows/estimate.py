"""``ssl-backdoor estimate``: what a run would take, before it is begun.

The stages are counted, not guessed: they are stated as a flow states them. What one takes is found by a dress
rehearsal of each kind of work on this machine or its cluster, and when all would be done by a schedule of the stages.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, get_args

from flows.arguments import CALIBRATION_S
from flows.bill import Bill, Sizes
from flows.census import Census, Work, stated
from flows.console import progress_shown
from flows.makespan import Job, makespan_s
from flows.units import bytes_text, count_text
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.data.preview import Preview, imagined, preview, preview_of
from ssl_backdoor.errors import SpecError, UserError
from ssl_backdoor.progress import Progress
from ssl_backdoor.rehearsal import Ingesting, Kind, Line, Pace, Rehearsal
from ssl_backdoor.specs import DatasetSpec, ReportSpec, Resources, Stage
from ssl_backdoor.stages import StageCall
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from tasks.lab import ORDER
from tasks.ray_fit import Listener, disconnect
from tasks.ray_rehearsal import PROCESSOR, Rehearsed, Scene, rehearse_on_ray
from tasks.stages import ON_RAY

_BUSY_BELOW = 0.8
_FEWEST_PARTS = 5  # into which the time that measuring may take is cut
# By the start (imports, Prefect's server), which is measured here and now; tests/benchmarks/README.md has the figures.
_REPORT_BY_START = Line(0.7, 0.03)  # each: encoder that was scored
_END_BY_START = Line(0.9, 0.02)  # the record in MLflow, and leaving
_REPORT_BYTES, _REPORT_FILES = Line(1.0e6, 0.2e6), 16


class Wish(NamedTuple):
    """What is to be estimated, beside the recipe."""

    num_devices: int | None = None
    """None: as many as there are."""
    data: str | None = None
    probe_data: str | None = None
    test_data: str | None = None
    num_images: Sequence[int] | None = None
    """Training and test images of data that are not there yet."""
    seconds: float = CALIBRATION_S
    """What measuring may take, about; imports, Ray's start and the least amount of each kind of work come on top."""


class _Cost(NamedTuple):
    work: Work
    seconds: float
    sizes: Sizes


def estimate(report: ReportSpec, store: ArtifactStore, wish: Wish) -> dict[str, Any]:
    """Time, storage and requests of ``report``, as plain JSON data; progress is shown on stderr.

    Raises:
        UserError: what a run would refuse; or a server that this shell names does not answer.
    """
    if wish.num_images and wish.data:
        raise SpecError("--images is for data that are not there yet: leave it or --data out.")
    began_s = time.perf_counter()
    try:
        with progress_shown() as listen:
            there, census = _counted(report, store, wish, listen)
            todo = {ref: one for ref, one in census.work.items() if ref not in there}
            start_s = _start_s()
            at_host = _rehearsed_here(census, list(todo.values()))
            on_ray = _rehearsed_on_ray(census, list(todo.values()), wish, listen)
    finally:
        disconnect()
    paces = at_host | on_ray.paces
    costs = {ref: _cost(ref, one, paces, census, start_s) for ref, one in todo.items()}
    num_devices = wish.num_devices or on_ray.num_devices
    cpu_frac = fmean(pace.cpu_frac for pace in on_ray.paces.values()) if on_ray.paces else 1.0
    return {
        "recipe": report.recipe,
        "runs": len(report.runs),
        "store": store.root,
        "devices": num_devices,
        "device": on_ray.device,
        "stages": _by_stage(census, costs, there, store),
        **_times(census, costs, num_devices, start_s, on_ray.ready_s),
        "calibration": {
            "seconds": round(time.perf_counter() - began_s, 1),
            "kinds": len(paces),
            "at_once": on_ray.at_once,
            "load": [round(value, 2) for value in os.getloadavg()],
            "cpu_frac": round(cpu_frac, 2),
            "notes": sorted({pace.note for pace in paces.values() if pace.note}),
        },
    }


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """What ``estimate`` told, for people."""
    yield f"{told['recipe']}: {count_text(told['runs'], 'run')}, artifacts in {told['store']}"
    yield ""
    yield "STAGE        COUNT   THERE       EACH    TOGETHER   STORAGE  S3 WRITES  S3 READS"
    sums = told["stages"]
    total = {name: sum(one[name] for one in sums.values()) for name in next(iter(sums.values()))}
    for name, one in (*sums.items(), ("all", total)):
        missing = one["count"] - one["there"]
        each = f"{one['seconds'] / missing:,.1f} s" if missing and name != "all" else ""
        yield (
            f"{name:<10}{one['count']:>8,}{one['there']:>8,}{each:>11}{_clock(one['seconds']):>12}"
            f"{bytes_text(one['bytes']):>10}{one['s3_writes']:>11,}{one['s3_reads']:>10,}"
        )
    yield ""
    parts = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in told["wall_parts_s"].items())
    yield f"wall-clock:  {_clock(told['wall_s'])} on {count_text(told['devices'], 'device')} ({parts})"
    yield f"device time: {told['device_hours']:,.2f} hours ({told['device']})"
    how = told["calibration"]
    yield (
        f"measured:    in {how['seconds']:,.0f} s, {count_text(how['kinds'], 'kind')} of work in small, on "
        f"{count_text(how['at_once'], 'device')} side by side, under a load of {how['load'][0]:g}"
    )
    if how["cpu_frac"] < _BUSY_BELOW and told["device"].startswith(PROCESSOR):
        yield (
            f"             other work had {1 - how['cpu_frac']:.0%} of the CPU's time meanwhile: "
            f"without it the device time is about {told['device_hours'] * how['cpu_frac']:,.2f} hours"
        )
    yield from (f"             {note}" for note in how["notes"])


def _counted(report: ReportSpec, store: ArtifactStore, wish: Wish, listen: Listener) -> tuple[set[ArtifactRef], Census]:
    """The stages whose artifacts the store holds, and the work of all."""
    digest, probe_data = source_digest, wish.probe_data
    if wish.num_images is not None:
        digest, probe_data = (lambda *_: "not there yet"), probe_data or ""
    calls = stated(report, store, digest, wish.data, probe_data, wish.test_data)
    kept = {stage: set(store.keys(stage)) for stage in get_args(Stage)}
    there = {ref for ref in calls if ref.key in kept[ref.stage]}

    def look(call: StageCall, dataset: DatasetSpec, ref: ArtifactRef) -> Preview:
        if wish.num_images is not None:
            return imagined(dataset, *wish.num_images)
        if ref in there:
            return preview_of(store, ref)
        listen(call.title, Progress(0, 1, "listings"))
        return preview(dataset, call.data, call.test_data)

    return there, Census(calls, look)


def _start_s() -> float:
    """What passes until a run states its first stage: imports, and Prefect's server, which is started if need be.

    Seen in a process of its own, as a run has one; for the second time, since the first also makes Prefect's database
    and finds nothing in the machine's cache of files.

    Raises:
        UserError: the server that this shell names does not answer.
    """
    took_s = 0.0
    for _ in range(2):
        began_s = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "flows.beginning"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"Prefect's server does not answer ({done.stdout.strip() or f'exit code {done.returncode}'}): "
                "start it (`make up`), or unset PREFECT_API_URL"
            )
        took_s = float(done.stdout) - began_s
    return took_s


def _rehearsed_here(census: Census, todo: Sequence[Work]) -> dict[Kind, Pace]:
    """What runs in the flow's own process, where this is."""
    found: dict[Kind, Pace] = {}
    for frame, kinds in _by_frame(todo, on_ray=False).items():
        images = census.shown(frame)
        with tempfile.TemporaryDirectory(prefix="ssl-backdoor-rehearsal-") as folder:
            rehearsal = Rehearsal(Path(folder), images.images, len(images.classes), 0.0, Resources())
            found |= {kind: rehearsal.pace(kind) for kind in kinds}
    return found


def _rehearsed_on_ray(census: Census, todo: Sequence[Work], wish: Wish, listen: Listener) -> Rehearsed:
    by_frame = _by_frame(todo, on_ray=True)
    if not by_frame:
        return Rehearsed({}, "none is needed", wish.num_devices or 1, 0, 0.0)
    scenes = [
        Scene(tuple(kinds), census.shown(frame).images, len(census.shown(frame).classes))
        for frame, kinds in by_frame.items()
    ]
    seconds = wish.seconds / max(_FEWEST_PARTS, 2 * sum(map(len, by_frame.values())))
    return rehearse_on_ray(scenes, seconds, Resources(), wish.num_devices or sys.maxsize, listen)


def _by_frame(todo: Sequence[Work], *, on_ray: bool) -> dict[DatasetSpec, dict[Kind, None]]:
    """Distinct kinds of work, by the frame of their images."""
    found: dict[DatasetSpec, dict[Kind, None]] = {}
    for one in todo:
        if one.kind is not None and (one.call.stage in ON_RAY) == on_ray:
            found.setdefault(one.kind.frame, {})[one.kind] = None
    return found


def _cost(ref: ArtifactRef, work: Work, paces: Mapping[Kind, Pace], census: Census, start_s: float) -> _Cost:
    if work.kind is None:
        share = round(_REPORT_BYTES.at(work.units) / _REPORT_FILES)
        return _Cost(work, start_s * _REPORT_BY_START.at(work.units), {f"{i}": share for i in range(_REPORT_FILES)})
    pace = paces[work.kind]
    seconds = pace.seconds.at(work.units)
    if isinstance(work.kind, Ingesting):  # a source is listed, then read, in the order of the listing
        images = census.previews[ref]
        seconds += 2 * images.listing_s + work.units * images.reading_s
    return _Cost(work, seconds, {name: round(line.at(work.units)) for name, line in pace.files.items()})


def _by_stage(
    census: Census, costs: Mapping[ArtifactRef, _Cost], there: set[ArtifactRef], store: ArtifactStore
) -> dict[str, dict[str, Any]]:
    sizes = {ref: cost.sizes for ref, cost in costs.items()}
    sizes |= {ref: {name: one.bytes for name, one in store.manifest(ref).files.items()} for ref in there}
    calls = {ref: one.call for ref, one in census.work.items()}
    bill = Bill(calls, sizes, {ref: one.units for ref, one in census.work.items()}).of_stages(there)
    found: dict[str, dict[str, Any]] = {}
    for stage in ORDER:
        ours = [cost for ref, cost in costs.items() if ref.stage == stage]
        found[stage] = {
            "count": sum(ref.stage == stage for ref in calls),
            "there": sum(ref.stage == stage for ref in there),
            "seconds": round(sum(cost.seconds for cost in ours), 3),
            "bytes": sum(sum(cost.sizes.values()) for cost in ours),
            "s3_writes": bill[stage].writes,
            "s3_reads": bill[stage].reads,
            "s3_deletes": bill[stage].deletes,
        }
    return found


def _times(
    census: Census, costs: Mapping[ArtifactRef, _Cost], num_devices: int, start_s: float, ready_s: float
) -> dict[str, Any]:
    on_ray = {ref: index for index, ref in enumerate(ref for ref in costs if ref.stage in ON_RAY)}
    jobs = [
        Job(costs[ref].seconds, tuple(on_ray[one] for one in costs[ref].work.call.inputs.values() if one in on_ray))
        for ref in on_ray
    ]
    of_stage = {stage: sum(cost.seconds for ref, cost in costs.items() if ref.stage == stage) for stage in ORDER}
    num_scored = sum(one.units for one in census.work.values() if one.kind is None)
    parts = {
        "start": start_s + ready_s,
        "images and poisons": of_stage["ingest"] + of_stage["poison"],
        "devices": makespan_s(jobs, num_devices),
        "report": of_stage["report"],
        "record and end": start_s * _END_BY_START.at(num_scored),
    }
    return {
        "device_hours": round(sum(job.seconds for job in jobs) / 3600, 4),
        "wall_s": round(sum(parts.values()), 1),
        "wall_parts_s": {name: round(seconds, 1) for name, seconds in parts.items()},
    }


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
