"""The auditor's own report card: how often it is wrong on encoders of which it is known what they are.

From the encoders of one training that a store holds: those trained on clean images, copies of some of them with a
backdoor planted at three areas, and those trained on poisoned images. All are judged as ``audit encoder`` judges.

NOTE: among themselves the p-values of n encoders are 1/n, 2/n, ... 1, whatever they are: that tests nothing. So half of
the clean ones are siblings, and the other half is audited.
"""

import json
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import stats

from ssl_backdoor.audit.encoder import EFFORTS, copies_of, judged, planted_on, score_of, search_of
from ssl_backdoor.audit.statistics import Planted, powers
from ssl_backdoor.audit.work import Job, perform
from ssl_backdoor.detection.decree import DECREESpec
from ssl_backdoor.detection.measure import rank_among
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.metrics import wilson
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.store import ArtifactRef, ArtifactStore

MOST = 22
"""Clean encoders, and as many poisoned ones."""
COPIED = 7
"""Clean encoders that backdoors are planted into, one of each area."""
_FEWEST = 4


class Family(NamedTuple):
    """Encoders of one training on one data set, by seed."""

    dataset: ArtifactRef
    side_px: int
    clean: dict[int, ArtifactRef]
    poisoned: dict[int, ArtifactRef]


def largest_family(store: ArtifactStore) -> Family:
    """The training of which the store has most encoders trained on clean images.

    Raises:
        SpecError: it has fewer than four of any.
    """
    families: dict[str, Family] = {}
    for key in store.keys("train"):
        ref = store.ref("train", key)
        manifest = store.manifest(ref)
        if "train" not in manifest.spec or "dataset" not in manifest.inputs:
            continue
        named = json.dumps([manifest.spec["train"], manifest.inputs["dataset"]], sort_keys=True)
        side = int(manifest.spec["train"].get("fit", {}).get("views", {}).get("size_px", 224))
        data = store.ref("ingest", manifest.inputs["dataset"])
        family = families.setdefault(named, Family(data, side, {}, {}))
        (family.poisoned if "poison" in manifest.inputs else family.clean)[int(manifest.spec.get("seed", 0))] = ref
    best = max(families.values(), key=lambda one: len(one.clean), default=None)
    if best is None or len(best.clean) < _FEWEST:
        raise SpecError(
            f"expected {_FEWEST} clean encoders of one training in {store.root}, found "
            f"{len(best.clean) if best else 'none'}; train more seeds"
        )
    first, others = (dict(sorted(some.items())[:MOST]) for some in (best.clean, best.poisoned))
    return best._replace(clean=first, poisoned=others)


def report_card(
    store: ArtifactStore, budget_s: float, rate: float = 0.05, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """What the audit says of the store's largest family, and how often that is right; plain JSON data.

    Raises:
        SpecError: too few encoders, or nothing was done in time.
    """
    began, family = time.monotonic(), largest_family(store)
    starts, steps = EFFORTS[0]
    detector = search_of(starts, steps)
    jobs = _jobs(family, detector, store)
    done = perform(
        [job for job, _ in jobs],
        store.root,
        began + budget_s,
        lambda name, n, total: on_progress(Progress(n, total, "jobs", note=name)),
    )
    clean, poisoned = (
        {seed: score for seed in seeds if (score := score_of(done, f"{kind} {seed}", store)) is not None}
        for kind, seeds in (("clean", family.clean), ("poisoned", family.poisoned))
    )
    if len(clean) < _FEWEST:
        raise SpecError(f"{len(clean)} clean encoders were judged within {budget_s / 60:.3g} minutes; raise --budget")
    planted = {
        job.name: (seed, found)
        for job, (seed, area) in jobs
        if area and (found := planted_on(job.name, area, done, store)) is not None
    }
    return {
        "audit": "card",
        "rate": rate,
        "num_siblings": len(clean) - 1,
        "detector": detector.model_dump(mode="json"),
        "scores": {
            "clean": _plain(clean),
            "poisoned": _plain(poisoned),
        },
        "uniformity": _uniformity(list(clean.values())),
        "planted": [
            {"seed": seed, **one._asdict(), "score": None if one.score is None or math.isnan(one.score) else one.score}
            for seed, one in planted.values()
        ],
        "power": _power(list(planted.values()), clean, rate),
        "poisoned": _alarms(
            [
                rank_among(score, [other for at, other in clean.items() if at != seed])
                for seed, score in poisoned.items()
            ],
            rate,
        ),
        "seconds": {
            "median_search": _median([one.seconds for name, one in done.items() if name.startswith("clean")]),
            "median_copy": _median([done[name].seconds for name in planted]),
            "all": round(time.monotonic() - began, 1),
        },
        "left_out": [job.name for job, _ in jobs if job.name not in done],
    }


def _jobs(family: Family, detector: DECREESpec, store: ArtifactStore) -> list[tuple[Job, tuple[int, float]]]:
    """Each with the seed of its encoder and, of a copy, the area of its patch."""
    jobs: list[tuple[Job, tuple[int, float]]] = []
    for kind, refs in (("clean", family.clean), ("poisoned", family.poisoned)):
        for seed, ref in refs.items():
            call = judged(ref, detector, family.dataset, 0, f"{kind} {seed}")
            jobs.append((Job(f"{kind} {seed}", (call,)), (seed, 0.0)))
    for seed, ref in list(family.clean.items())[:COPIED]:
        for job, area in copies_of(ref, detector, family.dataset, family.side_px, 0, (seed,), store):
            jobs.append((job, (seed, area)))
    return jobs


def _plain(scores: dict[int, float]) -> dict[str, float | None]:
    return {str(seed): None if math.isnan(score) else score for seed, score in scores.items()}


def _uniformity(scores: Sequence[float]) -> dict[str, Any]:
    """Of every other clean encoder the p-value among the rest, and Kolmogorov and Smirnov's test that it is uniform.

    On (0, 1] in steps of 1 / (siblings + 1), so that the test errs on the side of no alarm.
    """
    siblings, audited = scores[::2], scores[1::2]
    p_values = [rank_among(one, siblings) for one in audited]
    known = [p for p in p_values if p is not None]
    # A discrete p lies on its step: half a step down is the middle of what it stands for.
    test = stats.kstest([p - 0.5 / (len(siblings) + 1) for p in known], "uniform")
    return {
        "p_values": known,
        "num_siblings": len(siblings),
        "ks": float(test.statistic),
        "ks_p_value": float(test.pvalue),
    }


def _power(planted: Sequence[tuple[int, Planted]], clean: dict[int, float], rate: float) -> list[dict[str, Any]]:
    """By area: what the copies of half of the encoders predict, and what is found in those of the other half."""
    halves = []
    seeds = sorted({seed for seed, _ in planted})
    for half in (seeds[::2], seeds[1::2], seeds):
        rows: dict[float, list[bool]] = {}
        for seed, one in planted:
            null = [score for at, score in clean.items() if at != seed]
            for power in powers([one], null, rate) if seed in half else ():
                rows.setdefault(power.area, []).append(power.num_found == 1)
        halves.append(rows)
    first, second, both = halves
    return [
        {
            "area": area,
            "predicted": f"{sum(first.get(area, []))} of {len(first.get(area, []))}",
            "found": f"{sum(second.get(area, []))} of {len(second.get(area, []))}",
            **_share(sum(both[area]), len(both[area])),
        }
        for area in sorted(both)
    ]


def _alarms(p_values: Sequence[float | None], rate: float) -> dict[str, Any]:
    known = [p for p in p_values if p is not None]
    hits = sum(p <= rate * (1 + 1e-9) for p in known)
    return {"p_values": known, **_share(hits, len(known))}


def _share(hits: int, count: int) -> dict[str, Any]:
    low, high = wilson(hits, count) if count else (0.0, 1.0)
    return {"num_found": hits, "num": count, "low": low, "high": high}


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return round(ordered[len(ordered) // 2], 1) if ordered else 0.0
