"""``ssl-backdoor estimate``: the time and storage of a run before it is started.

A dry run gives the stages (``workload``), a calibration on this machine or its cluster the cost of each kind of stage
(``tasks.ray_calibration``), and a simulated schedule the wall-clock time (``schedule``).
"""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from statistics import fmean
from typing import Any, NamedTuple, get_args

from flows import settings
from flows.estimate.schedule import Job, makespan_s
from flows.estimate.workload import StageWork, Workload
from flows.pipeline import plan_stages
from flows.terminal.arguments import CALIBRATION_S
from flows.terminal.console import show_progress
from ssl_backdoor import preflight
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.errors import SpecError, UserError
from ssl_backdoor.estimate.cost_model import CostModel, IngestKind, LinearCost, StageKind
from ssl_backdoor.estimate.preview import Preview, preview_artifact, preview_source, synthetic_preview
from ssl_backdoor.events import log_event
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import DatasetSpec, ReportSpec, Resources, Stage
from ssl_backdoor.stages import StageCall
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from tasks.planner import NO_SOURCES, Digest, Sources
from tasks.ray_calibration import CalibrationResult, CalibrationWorkload, calibrate_on_ray
from tasks.ray_fit import Listener, disconnect
from tasks.scheduler import ORDER
from tasks.stages import ON_RAY

_STARTUP_KEPT_S = 3600
_MIN_SHARES = 5  # of the time that measuring may take
# In multiples of the start (imports, Prefect's server), which is measured; tests/benchmarks/README.md has the figures.
_REPORT_PER_START = LinearCost(0.7, 0.03)  # a unit is an encoder that was scored
_END_PER_START = LinearCost(0.9, 0.02)  # the record in MLflow, and leaving
_REPORT_BYTES = LinearCost(1.0e6, 0.2e6)


class EstimateOptions(NamedTuple):
    """What is estimated, besides the recipe."""

    num_devices: int | None = None
    """None: as many as there are."""
    sources: Sources = NO_SOURCES
    num_images: Sequence[int] | None = None
    """Training and test images of data that do not exist yet."""
    seconds: float = CALIBRATION_S
    """About what measuring may take; imports, Ray's start and the least amount of each kind of work come on top."""
    digest: Digest = source_digest
    """How raw data are told apart."""


class _StageCost(NamedTuple):
    work: StageWork
    seconds: float
    num_bytes: int


def estimate(report: ReportSpec, store: ArtifactStore, options: EstimateOptions) -> dict[str, Any]:
    """Time and storage of ``report``, as plain JSON data; progress is shown on stderr.

    Raises:
        UserError: what a run would refuse; or a server that this shell names does not answer.
    """
    if options.num_images and options.sources.data:
        raise SpecError("--images is for data that are not there yet: leave it or --data out")
    began_s = time.perf_counter()
    try:
        with show_progress() as listen:
            stored, workload = _workload(report, store, options, listen)
            todo = {ref: work for ref, work in workload.stages.items() if ref not in stored}
            start_s = _startup_s()
            models = _calibrate_here(workload, list(todo.values()))
            on_ray = _calibrate_on_ray(workload, list(todo.values()), options, listen)
    finally:
        disconnect()
    models |= on_ray.models
    costs = {ref: _cost(ref, work, models, workload, start_s) for ref, work in todo.items()}
    num_devices = options.num_devices or on_ray.num_devices
    cpu_frac = fmean(model.cpu_frac for model in on_ray.models.values()) if on_ray.models else 1.0
    return {
        "recipe": report.recipe,
        "runs": len(report.runs),
        "store": store.root,
        "devices": num_devices,
        "device": on_ray.device,
        "stages": {stage: _stage_totals(stage, workload, costs, stored) for stage in ORDER},
        **_times(workload, costs, num_devices, start_s, on_ray.ready_s),
        "calibration": {
            "seconds": round(time.perf_counter() - began_s, 1),
            "kinds": len(models),
            "at_once": on_ray.num_used,
            "load": [round(value, 2) for value in os.getloadavg()],
            "cpu_frac": round(cpu_frac, 2),
            "notes": sorted({model.note for model in models.values() if model.note}),
        },
    }


def _workload(
    report: ReportSpec, store: ArtifactStore, options: EstimateOptions, listen: Listener
) -> tuple[set[ArtifactRef], Workload]:
    """The stages whose artifacts the store holds, and the work of all."""
    digest, sources = options.digest, options.sources
    if options.num_images is not None:
        digest, sources = (lambda *_: "not there yet"), sources._replace(probe_data=sources.probe_data or "")
    calls = plan_stages(report, store, digest, sources)
    preflight.check(calls, preflight.known_from_specs(calls))
    keys = {stage: set(store.keys(stage)) for stage in get_args(Stage)}
    stored = {ref for ref in calls if ref.key in keys[ref.stage]}

    def preview_dataset(call: StageCall, dataset: DatasetSpec, ref: ArtifactRef) -> Preview:
        if options.num_images is not None:
            return synthetic_preview(dataset, *options.num_images)
        if ref in stored:
            known, preview = preflight.known_from_artifact(store, ref), preview_artifact(store, ref)
        else:
            listen(call.title, Progress(0, 1, "listings"))
            preview = preview_source(dataset, call.data, call.test_data)
            known = preflight.Known(dataset, preview.counts)
        for remark in preflight.check(calls, {ref: known}):
            log_event("remark", remark, logging.WARNING)
        return preview

    return stored, Workload(calls, preview_dataset)


def _startup_s() -> float:
    """The time until a run begins its first stage: imports, and Prefect's server, which is started if need be.

    Measured in a process of its own, and the second of two: the first also makes Prefect's database and fills the
    file cache. A home keeps the figure for an hour. Not that of a server which this shell names: it may be away.

    Raises:
        UserError: the server that this shell names does not answer.
    """
    if "PREFECT_API_URL" in os.environ:
        return _measure_startup_s()
    file = settings.HOME / "startup.json"
    machine = [platform.node(), sys.version, version("prefect")]
    with suppress(OSError, ValueError, TypeError, KeyError):  # not there, or not ours
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["machine"] == machine and 0 <= time.time() - kept["at"] < _STARTUP_KEPT_S:
            return float(kept["seconds"])
    seconds = _measure_startup_s()
    kept = {"machine": machine, "at": time.time(), "seconds": seconds}
    file.write_text(json.dumps(kept), encoding="utf-8")  # one that is cut short is measured anew
    return seconds


def _measure_startup_s() -> float:
    startup_s = 0.0
    command = [sys.executable, "-P", "-m", "flows.estimate.startup_probe"]  # -P: no module of the working folder
    for _ in range(2):
        began_s = time.perf_counter()
        probe = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if probe.returncode:
            raise UserError(
                f"Prefect's server does not answer ({probe.stdout.strip() or f'exit code {probe.returncode}'}): "
                "start it (`make up`), or unset PREFECT_API_URL"
            )
        startup_s = float(probe.stdout) - began_s
    return startup_s


def _calibrate_here(workload: Workload, todo: Sequence[StageWork]) -> dict[StageKind, CostModel]:
    """Of what runs in the flow's own process, in the least amount."""
    return {
        kind: model
        for calibration in _calibration_workloads(workload, todo, on_ray=False)
        for kind, model in calibration.calibrate(0.0, Resources())
    }


def _calibrate_on_ray(
    workload: Workload, todo: Sequence[StageWork], options: EstimateOptions, listen: Listener
) -> CalibrationResult:
    calibrations = _calibration_workloads(workload, todo, on_ray=True)
    if not calibrations:
        return CalibrationResult({}, "none is needed", options.num_devices or 1, 0, 0.0)
    seconds = options.seconds / max(_MIN_SHARES, 2 * sum(len(one.kinds) for one in calibrations))
    return calibrate_on_ray(calibrations, seconds, Resources(), options.num_devices or sys.maxsize, listen)


def _calibration_workloads(workload: Workload, todo: Sequence[StageWork], *, on_ray: bool) -> list[CalibrationWorkload]:
    """The distinct kinds of work, by the frame of their images."""
    by_frame: dict[DatasetSpec, dict[StageKind, None]] = {}
    for work in todo:
        if work.kind is not None and (work.call.stage in ON_RAY) == on_ray:
            by_frame.setdefault(work.kind.frame, {})[work.kind] = None
    samples = {frame: workload.sample(frame) for frame in by_frame}
    return [
        CalibrationWorkload(tuple(kinds), samples[frame].images, len(samples[frame].counts.classes))
        for frame, kinds in by_frame.items()
    ]


def _cost(
    ref: ArtifactRef, work: StageWork, models: Mapping[StageKind, CostModel], workload: Workload, start_s: float
) -> _StageCost:
    if work.kind is None:
        return _StageCost(work, start_s * _REPORT_PER_START.at(work.units), round(_REPORT_BYTES.at(work.units)))
    model = models[work.kind]
    seconds = model.seconds.at(work.units)
    if isinstance(work.kind, IngestKind):  # a source is listed, then read, in the order of the listing
        preview = workload.previews[ref]
        seconds += 2 * preview.listing_s + work.units * preview.reading_s
    return _StageCost(work, seconds, round(model.num_bytes.at(work.units)))


def _stage_totals(
    stage: Stage, workload: Workload, costs: Mapping[ArtifactRef, _StageCost], stored: set[ArtifactRef]
) -> dict[str, Any]:
    missing = [cost for ref, cost in costs.items() if ref.stage == stage]
    return {
        "count": sum(ref.stage == stage for ref in workload.stages),
        "there": sum(ref.stage == stage for ref in stored),
        "seconds": round(sum(cost.seconds for cost in missing), 3),
        "bytes": sum(cost.num_bytes for cost in missing),
    }


def _times(
    workload: Workload, costs: Mapping[ArtifactRef, _StageCost], num_devices: int, start_s: float, ready_s: float
) -> dict[str, Any]:
    job_of = {ref: index for index, ref in enumerate(ref for ref in costs if ref.stage in ON_RAY)}
    jobs = [
        Job(costs[ref].seconds, tuple(job_of[one] for one in costs[ref].work.call.inputs.values() if one in job_of))
        for ref in job_of
    ]
    of_stage = {stage: sum(cost.seconds for ref, cost in costs.items() if ref.stage == stage) for stage in ORDER}
    num_scored = sum(work.units for work in workload.stages.values() if work.kind is None)
    parts = {
        "start": start_s + ready_s,
        "images and poisons": of_stage["ingest"] + of_stage["poison"],
        "devices": makespan_s(jobs, num_devices),
        "report": of_stage["report"],
        "record and end": start_s * _END_PER_START.at(num_scored),
    }
    return {
        "device_hours": round(sum(job.seconds for job in jobs) / 3600, 4),
        "wall_s": round(sum(parts.values()), 1),
        "wall_parts_s": {name: round(seconds, 1) for name, seconds in parts.items()},
    }
