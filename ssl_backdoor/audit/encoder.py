"""The audit of one encoder: is there a planted trigger, how often is that said of encoders without one, what was seen.

In the order of the page: the file, the images, the smallest trigger (DECREE, checked on images that were not searched),
the same of siblings, the same of copies into which a backdoor was planted on trial, where the trigger leads, and how
the encoder takes ordinary patches. The p-value is that of DECREE's size alone, chosen beforehand: a second test would
halve what the siblings can say.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ssl_backdoor.audit import evidence, subjects, verdict
from ssl_backdoor.audit.quarantine import TIMEOUT_S, Refusal, files_of
from ssl_backdoor.audit.statistics import Planted, Power, powers
from ssl_backdoor.audit.subjects import Subject
from ssl_backdoor.audit.work import Done, Job, perform
from ssl_backdoor.data.sources import open_source
from ssl_backdoor.data.stored import open_dataset
from ssl_backdoor.data.survey import list_source
from ssl_backdoor.detection import inversion
from ssl_backdoor.detection.collapse import CollapseSpec, SuspectedTriggerSpec
from ssl_backdoor.detection.decree import DECREESpec
from ssl_backdoor.detection.measure import rank_among
from ssl_backdoor.detection.run import images_of_encoder
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.losses import mean_pairwise_cosine
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.specs import DatasetSpec, Detector, Trigger
from ssl_backdoor.stages import DetectStage, IngestStage, StageCall, TamperStage, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from ssl_backdoor.tampering.spike_in import SpikeInSpec

AREAS = (0.10, 0.05, 0.02)
"""Shares of the image that a patch planted on trial covers, in whole pixels; the largest is planted first."""
COPIES = 3
"""Of each area."""
EFFORTS = ((2, 150), (1, 150), (1, 75), (1, 40))
"""Starts and steps of the search: the first that leaves time for siblings and copies."""
MOST_IMAGES = 4000
_SHARE_OF_SEARCHES = 0.5
_RESERVE_S = 20.0
REQUIREMENTS = {
    "6.1.1": "checksum of the file: given below; a signed record of origin is not",
    "6.1.2": "scan for malicious layers or Trojan triggers before import: this page",
    "6.1.3": "quarantine until sign-off: loaded in a process of its own; the sign-off is yours",
}
STANDARD = "OWASP AISVS 1.0, chapter C6, as read in its repository at 05b702c"


class Asked(NamedTuple):
    """An audit."""

    encoder: str
    images: str
    siblings: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    trigger: Trigger | None = None
    budget_s: float = 1800.0
    rate: float = 0.05
    seed: int = 0
    said: Mapping[str, Any] = {}
    """Fields of ``encoders.Preprocessing``."""


class Audit(NamedTuple):
    """What was found: plain JSON data, and pixels for the page."""

    facts: dict[str, Any]
    pictures: Mapping[str, "np.typing.NDArray[np.uint8]"]
    embedding: torch.Tensor | None


def audit_encoder(asked: Asked, store: ArtifactStore, scratch: Path, on_progress: OnProgress = silent) -> Audit:
    """Audit the encoder that ``asked`` names; every stage is kept in ``store`` and reused.

    Raises:
        SpecError: the encoder, a sibling or a setting names nothing that can be used.
        DataError: the images cannot be read, or are too few.
        UserError: the store cannot do its work.
    """
    began = time.monotonic()
    files = [subjects.file_facts(file) for file in files_of(asked.encoder)]
    facts: dict[str, Any] = {"audit": "encoder", "encoder": asked.encoder, "files": files, "seed": asked.seed}
    facts |= {"requirements": REQUIREMENTS, "standard": STANDARD, "budget_s": asked.budget_s, "left_out": []}
    subject = subjects.load(asked.encoder, asked.said, store, scratch / "encoder", min(TIMEOUT_S, asked.budget_s))
    if isinstance(subject, Refusal):
        return Audit(facts | {"verdict": verdict.refused(subject.reason)._asdict(), "cost": _cost(began)}, {}, None)
    others, refused = subjects.siblings(
        asked.siblings, subject, asked.said, store, scratch, min(TIMEOUT_S, asked.budget_s)
    )
    facts["left_out"] += refused
    images = _ingest(asked, subject, store, on_progress)
    dataset = open_dataset(store, images)
    pool = images_of_encoder(dataset, asked.seed, "cpu")[0].pool
    shown = pool.images(torch.arange(min(len(pool), 500)))
    fit = evidence.fit_of_images(store.fetch(subject.ref), shown)
    facts["loading"] = dict(subject.facts)
    facts["images"] = {"artifact": f"ingest/{images.key}", "num_test": len(pool), "side_px": shown.shape[-1], **fit}
    plan = _plan(asked, subject, others, images, store, shown.shape[-1])
    deadline = began + asked.budget_s - min(_RESERVE_S, asked.budget_s / 5)
    done = perform(
        plan.jobs, store.root, deadline, lambda name, n, total: on_progress(Progress(n, total, "jobs", note=name))
    )
    facts |= _found(asked, subject, others, plan, done, store)
    facts["left_out"] += [*plan.left_out, *_not_done(plan.jobs, done, asked.budget_s)]
    pull = _pull(asked, subject, plan, done, dataset, store)
    facts |= _judged(asked, facts, pull, len(pool))
    facts["cost"] = _cost(began) | {"seconds_by_job": {name: round(one.seconds, 1) for name, one in done.items()}}
    return Audit(facts, pull.pictures if pull else {}, pull.embedding if pull else None)


class _Plan(NamedTuple):
    detector: DECREESpec
    jobs: list[Job]
    areas: Mapping[str, float]
    """Of each copy's job, the share of pixels that its patch covers."""
    left_out: list[str]


def _cost(began: float) -> dict[str, Any]:
    return {"seconds": round(time.monotonic() - began, 1)}


def _ingest(asked: Asked, subject: Subject, store: ArtifactStore, on_progress: OnProgress) -> ArtifactRef:
    """The images in the encoder's frame, half of them to search and check on where they have no test split."""
    side = subject.frame.size_px
    if not side:
        raise SpecError(f"{subject.name} says no side of its images: give it with --image-size PX")
    plain = DatasetSpec(frame_px=side, test_fraction=0.5)
    kept = list_source(open_source(plain, asked.images), plain, lambda *_: None).keep.sum()
    dataset = plain.model_copy(update={"keep_fraction": min(1.0, MOST_IMAGES / max(1, int(kept)))})
    call = StageCall(IngestStage(dataset=dataset), data=asked.images, title="the images")
    return run_stage(call, store, on_progress=on_progress).ref


def _plan(
    asked: Asked,
    subject: Subject,
    others: Sequence[Subject],
    images: ArtifactRef,
    store: ArtifactStore,
    side: int,
) -> _Plan:
    """Everything that is to be done, the most important first, with a search that the budget allows."""
    step_s = _step_seconds(store.fetch(subject.ref), side)
    detector, left_out = _effort(asked, step_s, 1 + len(others) + COPIES * len(AREAS))

    def judge(model: ArtifactRef, by: Detector, title: str) -> StageCall:
        return judged(model, by, images, asked.seed, title)

    jobs = [Job(ENCODER, (judge(subject.ref, detector, "search for a trigger"),))]
    if asked.trigger is not None:
        suspicion = SuspectedTriggerSpec(trigger=asked.trigger, num_images=100)
        jobs.append(Job(SUSPICION, (judge(subject.ref, suspicion, "the suspected trigger"),)))
    jobs += [Job(f"sibling {one.name}", (judge(one.ref, detector, f"search in sibling {one.name}"),)) for one in others]
    ordinary = CollapseSpec(num_patches=80, num_images=100)
    jobs.append(Job(ORDINARY, (judge(subject.ref, ordinary, "ordinary patches"),)))
    copies = copies_of(subject.ref, detector, images, side, asked.seed, range(COPIES), store)
    jobs += [job for job, _ in copies]
    names = {one.name: f"{ORDINARY} of {one.name}" for one in others}
    jobs += [Job(names[one.name], (judge(one.ref, ordinary, names[one.name]),)) for one in others]
    return _Plan(detector, jobs, {job.name: area for job, area in copies}, left_out)


def _not_done(jobs: Sequence[Job], done: Mapping[str, Done], budget_s: float) -> Iterator[str]:
    """What the budget left out, a line a kind."""
    kinds = {"sibling": "siblings", "copy": "planted copies", f"{ORDINARY} of": f"{ORDINARY} of siblings"}
    for start, kind in (kinds | {name: name for name in (ENCODER, SUSPICION, ORDINARY)}).items():
        all_of = [
            job.name for job in jobs if job.name == start or (start in kinds and job.name.startswith(f"{start} "))
        ]
        if missed := sum(name not in done for name in all_of):
            count = f", {missed} of {len(all_of)}" if start in kinds else ""
            yield f"{kind}{count}: not done within the budget of {budget_s / 60:.3g} minutes"


def judged(model: ArtifactRef, by: Detector, images: ArtifactRef, seed: int, title: str) -> StageCall:
    """The stage in which ``by`` judges ``model`` on ``images``."""
    return StageCall(DetectStage(detector=by, seed=seed), {"dataset": images, "model": model}, title=title)


def copies_of(
    model: ArtifactRef,
    detector: DECREESpec,
    images: ArtifactRef,
    side: int,
    seed: int,
    numbers: Sequence[int],
    store: ArtifactStore,
) -> list[tuple[Job, float]]:
    """Copies of ``model`` of each size, ``numbers`` of each: a backdoor is planted, then judged; the patch's area."""
    sizes = dict.fromkeys(max(1, round(side * area**0.5)) for area in AREAS)
    jobs = []
    for copy, size in ((copy, size) for copy in numbers for size in sizes):
        name = f"copy {copy + 1} with a patch of {size} px"
        attack = SpikeInSpec.on_area(side, size, 1000 * seed + 100 * copy + size)
        inputs = {"dataset": images, "model": model}
        tamper = StageCall(TamperStage(attack=attack, seed=seed + copy), inputs, title=name)
        call = judged(store.ref("tamper", tamper.key), detector, images, seed, f"search in {name}")
        jobs.append((Job(name, (tamper, call)), size * size / side**2))
    return jobs


ENCODER, SUSPICION, ORDINARY = "the encoder", "the suspected trigger", "ordinary patches"


def _step_seconds(folder: Path, side: int) -> float:
    """Of one step of the search: forward and back through the encoder on a batch, the second time."""
    model, images = inversion.Encoder(folder, "cpu"), torch.rand(32, 3, side, side, requires_grad=True)
    started = time.perf_counter()
    for _ in range(2):
        started = time.perf_counter()
        torch.autograd.backward(mean_pairwise_cosine(model(images)))
    return time.perf_counter() - started


def _effort(asked: Asked, step_s: float, searches: int) -> tuple[DECREESpec, list[str]]:
    for starts, steps in EFFORTS:
        if starts * steps * step_s * searches <= _SHARE_OF_SEARCHES * asked.budget_s:
            break
    else:
        starts, steps = EFFORTS[-1]
    spec = search_of(starts, steps)
    full = EFFORTS[0]
    told = (
        f"a search of {full[0]} starts of {full[1]} steps: {starts} of {steps} for the budget, the same for siblings "
        "and copies; a weaker search finds less"
    )
    return spec, [told] if (starts, steps) != full else []


def search_of(starts: int, steps: int) -> DECREESpec:
    """The search of so many starts and steps."""
    return DECREESpec(num_starts=starts, steps=steps, batch_size=32, num_images=250)


def _found(
    asked: Asked,
    subject: Subject,
    others: Sequence[Subject],
    plan: _Plan,
    done: Mapping[str, Done],
    store: ArtifactStore,
) -> dict[str, Any]:
    """Scores and p-values of all that was done in time."""
    first = done.get(ENCODER)
    if first is not None and first.failure:
        raise SpecError(first.failure)
    by_name = {one.name: summary for one in others if (summary := _summary(done, f"sibling {one.name}", store))}
    null = [_score(one) for one in by_name.values()]
    own = _summary(done, ENCODER, store)
    planted = [planted_on(name, area, done, store) for name, area in plan.areas.items()]
    power = powers([one for one in planted if one is not None], null, asked.rate)
    ordinary = _summary(done, ORDINARY, store)
    ordinary_null = [
        one["measurements"]["detection_score"]
        for sibling in others
        if (one := _summary(done, f"{ORDINARY} of {sibling.name}", store))
    ]
    suspicion = _summary(done, SUSPICION, store)
    return {
        "artifact": f"{subject.ref.stage}/{subject.ref.key}",
        "detector": plan.detector.model_dump(mode="json"),
        "card": own.get("card", {}),
        "score": _or_none(_score(own)) if own else None,
        "is_finished": bool(own),
        "siblings": [{"name": name, "score": _or_none(_score(one))} for name, one in by_name.items()],
        "p_value": rank_among(_score(own), null) if own else None,
        "rate": asked.rate,
        "planted": [one._asdict() | {"score": _or_none(one.score)} for one in planted if one is not None],
        "power": [one._asdict() | {"share": one.share} for one in power],
        "ordinary_patches": {
            "score": ordinary["measurements"]["detection_score"],
            "p_value": rank_among(ordinary["measurements"]["detection_score"], ordinary_null),
            "num_siblings": len(ordinary_null),
            **ordinary["card"],
        }
        if ordinary
        else None,
        "suspicion": {
            "trigger": asked.trigger.label if asked.trigger else "",
            "score": suspicion["measurements"]["detection_score"],
            "p_value": suspicion["measurements"]["detection_p_value"],
            "null_n": suspicion["null_n"],
            "null": suspicion["card"]["null"],
        }
        if suspicion
        else None,
    }


def _summary(done: Mapping[str, Done], name: str, store: ArtifactStore) -> dict[str, Any]:
    one = done.get(name)
    return dict(store.manifest(one.ref).summary) if one is not None and one.ref is not None else {}


def _score(summary: Mapping[str, Any]) -> float:
    """Not a number where nothing was found."""
    return float(summary["measurements"].get("detection_score", math.nan))


def _or_none(score: float | None) -> float | None:
    return None if score is None or math.isnan(score) else score


def score_of(done: Mapping[str, Done], name: str, store: ArtifactStore) -> float | None:
    """Of what was done in time; not a number where nothing was found."""
    summary = _summary(done, name, store)
    return _score(summary) if summary else None


def planted_on(name: str, area: float, done: Mapping[str, Done], store: ArtifactStore) -> Planted | None:
    """A copy that was done in time; one whose backdoor does not work is none that an audit could have found."""
    one = done.get(name)
    if one is None:
        return None
    if one.ref is None:
        return Planted(area, None, one.failure)
    made = store.manifest(store.ref("tamper", store.manifest(one.ref).inputs["model"])).summary
    reached = float(made["pairs"][0]["reached"])
    weak = "fewer than half of the images under it went to the target" * (reached < 0.5)
    return Planted(area, _score(_summary(done, name, store)), weak)


def _pull(
    asked: Asked, subject: Subject, plan: _Plan, done: Mapping[str, Done], dataset: Any, store: ArtifactStore
) -> evidence.Pull | None:
    one = done.get(ENCODER)
    if one is None or one.ref is None or "trigger.safetensors" not in store.manifest(one.ref).files:
        return None
    file = store.fetch(one.ref, ["trigger.safetensors"]) / "trigger.safetensors"
    return evidence.pull_of(store.fetch(subject.ref), file, plan.detector, dataset, asked.seed, asked.classes)


def _judged(asked: Asked, facts: Mapping[str, Any], pull: evidence.Pull | None, num_images: int) -> dict[str, Any]:
    """The verdict, what the trigger does, and what the audit cannot say."""
    if facts["is_finished"]:
        found = math.nan if facts["score"] is None else facts["score"]
        rows = [{name: value for name, value in one.items() if name != "share"} for one in facts["power"]]
        said = verdict.of_encoder(
            found,
            facts["p_value"],
            len(facts["siblings"]),
            facts["rate"],
            [Power(**row) for row in rows],
            pull.words if pull else "",
        )
    else:
        said = verdict.unfinished(asked.budget_s)
    told = {
        "verdict": said._asdict(),
        "others": verdict.others(facts["suspicion"], facts["ordinary_patches"], facts["images"]),
        "limits": list(verdict.limits(facts, num_images)),
    }
    if pull is not None:
        told["pull"] = {
            "agreement": pull.agreement,
            "clean_agreement": pull.clean_agreement,
            "share": pull.share,
            "nearest": list(pull.nearest),
            "classes": list(pull.classes),
            "interfaces": [one._asdict() for one in pull.interfaces],
        }
    return told
