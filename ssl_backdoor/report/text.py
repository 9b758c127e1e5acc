"""How a number, an interval and a name are spelled, the same in every table, figure and sentence."""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, assert_never

from ssl_backdoor.report.aggregate import Row
from ssl_backdoor.report.runs import shown_probes

Kind = Literal["count", "percent", "score"]
MISSING = "–"
ARM_LABELS = {
    "control": "control",
    "suspect": "suspect",
    "student": "student",
    "distilled_control": "distilled control",
}


class Quantity(NamedTuple):
    """A measured quantity as the page shows it."""

    name: str
    condition: str
    probe: str
    title: str
    detail: str
    kind: Kind


def effect_quantities(rows: Sequence[Row]) -> tuple[Quantity, ...]:
    """What judges the attack, on triggered images: target false positives by each shown probe, and the z-score."""
    probes = shown_probes(row.probe for row in rows)
    return (
        *(Quantity("target_false_positives", "triggered", p, "Target FP", probe_label(p), "count") for p in probes),
        Quantity("z_score_sd", "triggered", "features", "z-score", "features", "score"),
    )


def accuracy_quantities(rows: Sequence[Row]) -> tuple[Quantity, ...]:
    """Clean and triggered accuracy by the last shown probe."""
    return tuple(
        Quantity("accuracy", condition, p, f"{condition.capitalize()} accuracy", probe_label(p), "percent")
        for condition in ("clean", "triggered")
        for p in shown_probes(row.probe for row in rows)[-1:]
    )


def share_quantities(rows: Sequence[Row]) -> tuple[Quantity, ...]:
    """Share of triggered images in their most frequent class, by the first shown probe."""
    probes = shown_probes(row.probe for row in rows)[:1]
    return tuple(
        Quantity("top_class_share", "triggered", p, "Top-class share", probe_label(p), "percent") for p in probes
    )


def headline_quantities(rows: Sequence[Row]) -> tuple[Quantity, ...]:
    """The columns of the headline table."""
    effect = effect_quantities(rows)
    unseen = tuple(
        Quantity(q.name, "unseen_trigger", q.probe, "FP, unseen trigger", q.detail, q.kind) for q in effect[:-1]
    )
    return (*accuracy_quantities(rows), *effect[:-1], *unseen, effect[-1], *share_quantities(rows))


def number(value: float | None, kind: Kind, signed: bool = False) -> str:
    """``value`` with its unit: whole counts, fractions in percent (in points when signed), scores to 0.01."""
    if value is None or not math.isfinite(value):
        return MISSING
    sign = "+" if signed else ""
    match kind:
        case "count":
            text = f"{value:{sign},.0f}"
        case "percent":
            text = f"{100 * value:{sign}.1f}" + (" pt" if signed else " %")
        case "score":
            text = f"{value:{sign}.2f}"
        case _:
            assert_never(kind)
    return text.replace("-", "−")


def span(row: Row, kind: Kind, signed: bool = False) -> str:
    """The interval of ``row`` as "low to high", empty where there is none; the unit is that of the value."""
    if row.low is None or row.high is None:
        return ""
    low, high = (number(value, kind, signed).removesuffix(" %").removesuffix(" pt") for value in (row.low, row.high))
    return f"{low} to {high}"


def probe_label(probe: str) -> str:
    """Name of a probe for people: kNN, zero-shot, linear 100 %, linear SGD 1 %, linear layer 2 1 %, fine-tuned 1 %."""
    if probe in ("knn", "zero_shot"):
        return {"knn": "kNN", "zero_shot": "zero-shot"}[probe]
    probe = re.sub(r"layer(\d+)", r"layer \1", probe).replace("fine_tune", "fine-tuned")
    words = {"sgd": "SGD", "adam": "Adam"} | {word: f"{word} %" for word in probe.split("_") if word[:1].isdigit()}
    return " ".join(words.get(word, word) for word in probe.split("_"))


def paper_label(is_verified: bool) -> str:
    """Whether a paper's value was read or recalled."""
    return "paper" if is_verified else "paper (unverified)"


_MEASURES: dict[str, tuple[str, Kind]] = {
    "targeted_success": ("Targeted success", "percent"),
    "target_rank": ("Rank of y'", "score"),
    "attack_success_rate": ("Attack success", "percent"),
    "attack_success_rate_all": ("Attack success, all images", "percent"),
    "target_false_positives": ("Target FP", "count"),
    "top_class_share": ("Top-class share", "percent"),
    "accuracy": ("Clean accuracy", "percent"),
    "z_score_sd": ("z-score (sd)", "score"),
    "z_score_variance": ("z-score (variance)", "score"),
    "similarity_triggered": ("Cosine, triggered pairs", "score"),
    "similarity_clean": ("Cosine, clean pairs", "score"),
    "image_to_text_recall_1": ("Image to text, R@1", "percent"),
    "image_to_text_recall_5": ("Image to text, R@5", "percent"),
    "text_to_image_recall_1": ("Text to image, R@1", "percent"),
    "text_to_image_recall_5": ("Text to image, R@5", "percent"),
    "seconds": ("Seconds", "count"),
}


def measure_quantity(measure: str) -> Quantity:
    """How ``measure``, "name/probe", is titled and spelled; differences to the control as what they differ in."""
    name, _, probe = measure.partition("/")
    title, kind = _MEASURES.get(name.removesuffix("_excess"), (name, "score"))
    if name.endswith("_excess"):
        title = f"{title}, − control"
    detail = probe_label(probe) if probe else "to make it"
    return Quantity(name, "", probe, title, detail, kind)


def fixed_width(lines: Sequence[Sequence[str]], num_heads: int) -> str:
    """``lines`` as columns for a terminal, the first to the left, a rule below the heads; blank lines are left out."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    body = [line.rstrip() for line in text if line.strip()]
    return "\n".join([*body[:num_heads], "─" * (sum(widths) + 2 * (len(widths) - 1)), *body[num_heads:]])


def arm_label(row_arm: str, variant: str = "") -> str:
    """Name of an arm for people, with its side variant."""
    name = ARM_LABELS.get(row_arm, row_arm)
    return f"{name} [{variant}]" if variant else name


def to_json_measurements(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON data: null for a number that is not there; a side variant's arm reads ``suspect[variant]``."""
    records = []
    for row in rows:
        record = row._asdict()
        record["arm"] = f"{row.arm}[{row.variant}]" if row.variant else row.arm
        records.append(record)
    return records


def listing(parts: Sequence[str]) -> str:
    """The parts in a row of prose: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
