"""The whole experiment, one direction: ingest -> poison -> [filter] -> train -> [tamper, repair, detect] -> report."""

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ssl_backdoor import preflight
from ssl_backdoor.data.counts import Counts
from ssl_backdoor.data.ingest import check_listing
from ssl_backdoor.errors import SpecError
from ssl_backdoor.events import log_context, log_event
from ssl_backdoor.specs import (
    Filter,
    OtherDataSpec,
    Repair,
    ReportSpec,
    RobustTraining,
    RunSpec,
    TamperAttack,
    TrainedOn,
)
from ssl_backdoor.stages import SIBLING, StageCall
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from tasks.planner import NO_SOURCES, Digest, DryRunPlanner, Sources, StagePlanner

if TYPE_CHECKING:
    from tasks.scheduler import StageScheduler  # Prefect takes a second to import

Evidence = Mapping[str, ArtifactRef]
"""Of one run: role -> artifact."""
_UNKNOWN = "0" * 64  # in place of the digest of data that nobody has looked at yet


def disambiguate(names: Sequence[str], things: Sequence[Hashable]) -> list[str]:
    """``names``, with numbers behind where different things share one."""
    numbers: dict[str, dict[Hashable, int]] = {}
    for name, thing in zip(names, things, strict=True):
        same = numbers.setdefault(name, {})
        same.setdefault(thing, len(same) + 1)
    return [
        name if len(numbers[name]) == 1 else f"{name} [{numbers[name][thing]}]"
        for name, thing in zip(names, things, strict=True)
    ]


def plan_run(planner: StagePlanner, run: RunSpec, name: str, clean: str) -> Iterator[tuple[str, ArtifactRef]]:
    """The experiment: an attacker, an encoder, a defender, and what can be measured of all three.

    An attacker poisons a few images, adds a few pairs or tampers with an encoder; an encoder is trained on the poisoned
    data, another on the clean data under the same seed; each defence is tried on either; all are probed on clean,
    triggered and target images. ``name`` and ``clean`` are the run's and its control's for people.
    """
    seed = run.seed
    images = planner.ingest(run.dataset)
    probed = planner.ingest_other(run.probe_on.dataset) if isinstance(run.probe_on, OtherDataSpec) else images
    poisoned = planner.poison(run.attack, images, seed, name)
    data: dict[TrainedOn, Evidence] = {"clean": {"dataset": images}, "poisoned": {"dataset": images}}
    if not isinstance(run.attack, TamperAttack):
        data["poisoned"] = {"dataset": images, "poison": poisoned}
    yield "poison", poisoned
    models: dict[str, ArtifactRef] = {}
    for arm in run.arms:
        on, title = data[arm.trained_on], f"{arm.label}, {name if arm.trained_on == 'poisoned' else clean}"
        undefended = models.get(arm.trained_on)
        match arm.defence:
            case None if arm.trained_on == "poisoned" and isinstance(run.attack, TamperAttack):
                models[arm.role] = planner.tamper(run.attack, models["clean"], images, seed, title)
            case None:
                models[arm.role] = planner.train(run.train, seed, title, **on)
            case Repair() as repair if undefended is not None:
                models[arm.role] = planner.repair(repair, undefended, images, seed, title)
            case RobustTraining() as robust:
                models[arm.role] = planner.train(robust.train(run.train), seed, title, **on)
            case Filter() as chosen:
                judge = {"model": undefended} if chosen.needs_encoder and undefended else {}
                left_out = planner.filter(chosen, seed, title, **on, **judge)
                yield f"{arm.role}/filter", left_out
                models[arm.role] = planner.train(run.train, seed, title, **on, filter=left_out)
            case other:
                raise SpecError(f"defence {other.kind} is neither a Repair, a Filter nor a RobustTraining")
    for arm in run.arms:
        model, title = models[arm.role], f"{arm.label}, {name}"
        yield f"{arm.role}/model", model
        seen = {"dataset": probed, "model": model, "poison": poisoned}
        is_other = probed != images
        scores = planner.evaluate(run.evaluation, run.attack, seed, title, is_other=is_other, **seen)
        yield f"{arm.role}/scores", scores
        for detector in run.detectors if arm.defence is None else ():
            judged = {**data[arm.trained_on], "model": model, "trigger": poisoned}
            for sibling_seed in run.sibling_seeds if detector.level == "encoder" else ():
                who = f"clean sibling, seed {sibling_seed}, {clean}"
                sibling = planner.train(run.train, sibling_seed, who, dataset=images)
                on_sibling = f"{detector.label} on {who}"
                score = planner.detect(detector, run.attack, sibling_seed, on_sibling, dataset=images, model=sibling)
                judged[f"{SIBLING}{sibling_seed:03d}"] = score
            what, unseen = f"{detector.label} on {title}", run.evaluation.unseen_triggers
            found = planner.detect(detector, run.attack, seed, what, unseen, **judged)
            yield f"{arm.role}/{detector.kind}/detection", found


def plan_stages(
    report: ReportSpec, store: ArtifactStore, digest: Digest, sources: Sources = NO_SOURCES
) -> dict[ArtifactRef, StageCall]:
    """Each stage of ``report`` once, in the order of a flow.

    Raises:
        DataError: the data are not there.
        SpecError: data that are needed were not named.
    """
    planner = DryRunPlanner(store, digest, sources)
    planner.report(report, number_evidence(plan_runs(planner, report.runs)))
    return planner.calls


def check_specs(report: ReportSpec, store: ArtifactStore, sources: Sources) -> None:
    """What can be told before the data are looked at.

    Raises:
        SpecError: a run cannot be meant so.
    """
    calls = plan_stages(report, store, lambda *_: _UNKNOWN, sources)
    preflight.check(calls, preflight.known_from_specs(calls))


def check_data(calls: Mapping[ArtifactRef, StageCall], store: ArtifactStore) -> None:
    """What the names of the data show, or the images where they are ingested: no image is decoded, nothing made.

    Raises:
        DataError: the data cannot be used.
        SpecError: data and plan do not fit.
    """
    for ref, images in preflight.known_from_specs(calls).items():
        call = calls[ref]
        if store.find(ref.stage, ref.key) is not None:
            preflight.check(calls, {ref: preflight.known_from_artifact(store, ref)})
            continue
        with log_context(**call.ids):
            check_listing(images.spec, call.data, call.test_data, partial(_refuse, calls, ref, images))


def _refuse(calls: Mapping[ArtifactRef, StageCall], ref: ArtifactRef, images: preflight.Known, counts: Counts) -> None:
    preflight.check(calls, {ref: images._replace(counts=counts)})


def check_plan(scheduler: "StageScheduler", report: ReportSpec) -> None:
    """Ingest, and poison for one seed of each attack: a mistake in either is reported before any training begins.

    So is whatever does not fit the data in what is planned: where the listing shows it, before an image is decoded.

    Raises:
        SslBackdoorError: what one of these stages raised, or ``preflight.check``.
    """
    store = scheduler.store
    calls = plan_stages(report, store, scheduler.digest, scheduler.sources)
    images = preflight.known_from_specs(calls)
    for ref, known in images.items():
        scheduler.submit(replace(calls[ref], check=partial(_refuse, calls, ref, known)))
    scheduler.wait()
    for remark in preflight.check(calls, {ref: preflight.known_from_artifact(store, ref) for ref in images}):
        log_event("remark", remark, logging.WARNING)
    one_each: dict[Hashable, RunSpec] = {}
    for run in report.runs:
        one_each.setdefault((run.dataset, run.attack), run)
    for run in one_each.values():
        scheduler.poison(run.attack, scheduler.ingest(run.dataset), run.seed, run.label)
    scheduler.wait()


def plan_runs(planner: StagePlanner, runs: Sequence[RunSpec]) -> list[Evidence]:
    """Submit every stage of every run; return the references of each run's artifacts."""
    names = disambiguate([run.label for run in runs], runs)
    labels = [f"{f'{run.variant}, ' if run.variant else ''}seed {run.seed}" for run in runs]
    cleans = disambiguate(labels, [(run.dataset, run.train) for run in runs])
    return [dict(plan_run(planner, run, name, clean)) for run, name, clean in zip(runs, names, cleans, strict=True)]


def number_evidence(evidence: Sequence[Evidence]) -> Evidence:
    """The evidence of all runs under "RUN/ROLE", as a report reads it."""
    return {f"{index:03d}/{role}": ref for index, one in enumerate(evidence) for role, ref in one.items()}


def run_experiment(planner: "StageScheduler", report: ReportSpec) -> ArtifactRef:
    """Answer ``report.question`` with all of its runs; the first failure ends the flow.

    Raises:
        SslBackdoorError: what a stage raised.
    """
    check_plan(planner, report)
    page = planner.report(report, number_evidence(plan_runs(planner, report.runs)))
    planner.wait()
    return page
