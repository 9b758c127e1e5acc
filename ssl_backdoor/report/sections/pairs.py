"""The tables of runs that are paired with their controls: levels, differences, every pair."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ssl_backdoor.report.cells import (
    MISSING,
    Cell,
    Head,
    Line,
    Quantity,
    Table,
    accuracy_quantities,
    bare_number,
    cell_of,
    effect_quantities,
    fixed_width,
    headline_quantities,
    number_table,
    removed_cell,
    share_quantities,
)
from ssl_backdoor.report.estimates import Results
from ssl_backdoor.report.frame import ARMS, CONTROL, SUSPECT, Arm, EvaluatedModel, Measure, Replicate

_LEVELS = (
    "Each cell: mean, 95 % interval over pairs or seeds, n; of one model there is no interval. Target FP: test images "
    "not of the target class predicted as it, and the share of those that they are."
)
_DIFFERENCES = (
    "Arm minus control on triggered images (clean accuracy: on clean images): mean, 95 % interval, n. Specific excess: "
    "that difference less the same difference under triggers that no encoder was trained on."
)
_AS_ABOVE = "As in the first table; the control is that of the main variant where none is listed."


def defended_arms(results: Results) -> tuple[Arm, ...]:
    """The poisoned encoders after a defence."""
    return tuple(arm for arm in results.arms if arm.defence and not arm.is_clean)


def compared_arms(results: Results, variant: str) -> tuple[Arm, ...]:
    """The control, the poisoned encoder and what defences made of it, where ``variant`` holds them."""
    held = {row.point.arm for row in results.rows if row.point.variant == variant}
    return tuple(arm for arm in (CONTROL, SUSPECT, *defended_arms(results)) if arm in held)


def headline_table(results: Results, variant: str = "") -> Table:
    """One line an arm, one column a headline quantity."""
    quantities = tuple(
        q
        for q in headline_quantities(results.probes())
        if any(results.get(q.measure, arm, variant) for arm in results.arms)
    )
    lines = []
    for arm in results.arms:
        cells = tuple(cell_of(results.get(q.measure, arm, variant), q.kind) for q in quantities)
        if any(cell.value != MISSING for cell in cells):
            lines.append(Line(arm.label, arm.name, cells))
    return number_table(quantities, lines, _AS_ABOVE if variant else _LEVELS)


def excess_table(results: Results, variant: str = "") -> Table:
    """Differences to the control, and the share of the poisoned encoder's that a defence removed."""
    probes = results.probes()
    quantities = tuple(
        q
        for q in (
            *effect_quantities(probes),
            *share_quantities(probes),
            *reversed(accuracy_quantities(probes)),
        )
        if results.get(q.measure, SUSPECT, variant, "excess")
    )
    lines = []
    for arm in results.arms:
        rows = [results.get(q.measure, arm, variant, "excess") for q in quantities]
        if any(rows):
            cells = tuple(cell_of(row, q.kind) for row, q in zip(rows, quantities, strict=True))
            lines.append(Line(f"{arm.label} − control", arm.name, cells))
    for arm in results.arms:
        rows = [results.get(q.measure, arm, variant, "specific_excess") for q in quantities]
        if any(rows):
            cells = tuple(cell_of(row, q.kind) for row, q in zip(rows, quantities, strict=True))
            lines.append(Line(f"{arm.label}, specific excess", arm.name, cells))
    for arm in defended_arms(results):
        rows = [results.get(q.measure, arm, variant, "removed_frac") for q in quantities]
        if any(rows):
            lines.append(
                Line(f"share removed by {arm.words or arm.defence}", "removed", tuple(map(removed_cell, rows)))
            )
    return number_table(quantities, lines, _DIFFERENCES)


class Case(NamedTuple):
    """One pair and seed of a variant: its poisoned encoder, the control and the defended one, in one measurement."""

    control: float | None
    suspect: float | None
    defended: float | None


def suspects_of(results: Results, variant: str) -> list[EvaluatedModel]:
    """The poisoned encoders of ``variant``, undefended."""
    return [model for model in results.models if (model.run.variant, model.made) == (variant, SUSPECT)]


def first_pair(results: Results, variant: str) -> dict[Arm, EvaluatedModel]:
    """Control, poisoned encoder and what defences made of it, of the first pair and seed that has a poisoned one."""
    key = next((model.replicate for model in suspects_of(results, variant)), None)
    held = {m.made: m for m in reversed(results.models) if (m.run.variant, m.replicate) == (variant, key)}
    return {arm: held[arm] for arm in (CONTROL, SUSPECT, *defended_arms(results)) if arm in held}


def values_of(results: Results, variant: str, measure: Measure, arm: Arm) -> Mapping[Replicate, float]:
    """One measurement of an arm by pair and seed; of the control also where the main variant lends it."""
    variants = (results.control_variant(variant), variant) if arm == CONTROL else (variant,)
    rows = (results.get(measure, arm, name) for name in variants)
    return {key: value for row in rows if row is not None for key, value in row.values.items()}


def cases_of(results: Results, variant: str, measure: Measure) -> dict[Replicate, Case]:
    """Every pair and seed that has a poisoned encoder."""
    control, suspect = (values_of(results, variant, measure, arm) for arm in (CONTROL, SUSPECT))
    defended: dict[Replicate, float] = {}
    for arm in reversed(defended_arms(results)):
        defended.update(values_of(results, variant, measure, arm))
    keys = (model.replicate for model in suspects_of(results, variant))
    return {key: Case(control.get(key), suspect.get(key), defended.get(key)) for key in keys}


def pair_table(results: Results, variant_word: str) -> Table:
    """Every pair: groups of three columns (control, poisoned, defended), then the top class and specific excesses."""
    effects = effect_quantities(results.probes())
    every = (*effects, *share_quantities(results.probes()))
    cases = {(v, q): cases_of(results, v, q.measure) for v in results.variants for q in every}

    def shown(q: Quantity, position: int) -> bool:
        return any(case[position] is not None for v in results.variants for case in cases[v, q].values())

    groups = [q for q in every if shown(q, 1)]
    specific = [
        q for q in effects if any(results.get(q.measure, SUSPECT, v, "specific_excess") for v in results.variants)
    ]
    lines = []
    is_named = len(results.variants) > 1 or "" not in results.variants
    for variant in results.variants:
        suspects = suspects_of(results, variant)
        if suspects and is_named:
            lines.append(Line(f"{variant_word} {variant}" if variant else "main variant", "variant"))
        for model in suspects:
            key = model.replicate
            cells = [Cell(str(model.run.seed))]
            for q in groups:
                values = (bare_number(value, q.kind) for value in cases[variant, q][key])
                tones = (f"{ARMS[0]} start", *ARMS[1:3])
                cells += [Cell(value, tone=tone) for value, tone in zip(values, tones, strict=True)]
            cells.append(Cell(_top_class(model) or MISSING, tone="text start"))
            for position, q in enumerate(specific):
                row = results.get(q.measure, SUSPECT, variant, "specific_excess")
                value = None if row is None else row.values.get(key)
                cells.append(Cell(bare_number(value, q.kind, True), tone="" if position else "start"))
            lines.append(Line(key[0].label, "", tuple(cells)))
    return Table(_pair_heads(groups, specific), tuple(lines), "dense pairs")


def _pair_heads(groups: list[Quantity], specific: list[Quantity]) -> tuple[tuple[Head, ...], ...]:
    above = [Head("trigger / target", rows=2), Head("seed", rows=2)]
    below = []
    for q in groups:
        detail = "" if q.measure.probe == "features" else f", {q.detail}".replace(" %", "\u00a0%")
        above.append(Head(f"{q.title}{detail}{', %' * (q.kind == 'percent')}", span=3, tone="group"))
        below += [
            Head(letter, tone="" if position else "start", hint=ARMS[position]) for position, letter in enumerate("cpd")
        ]
    above.append(Head("top class", rows=2, tone="start text"))
    if specific:
        above.append(Head("specific excess", span=len(specific), tone="group"))
    for position, q in enumerate(specific):
        detail = "z‑score" if q.measure.probe == "features" else q.detail.replace(" %", "\u00a0%")
        below.append(Head(detail, tone="" if position else "start"))
    return tuple(above), tuple(below)


def _top_class(model: EvaluatedModel) -> str:
    """Class that kNN (or the first probe) gives to most of its triggered images."""
    probes = model.predictions["probe"].unique().to_pylist()
    if not probes or not model.classes:
        return ""
    _, guess = model.predicted("triggered", "knn" if "knn" in probes else probes[0])
    if not len(guess):
        return ""
    top = int(np.bincount(guess).argmax())
    return model.classes[top] if top < len(model.classes) else str(top)


def headline_numbers(results: Results) -> dict[str, float]:
    """The key numbers of the main variant by ``name/arm/condition/probe``; what is not defined is left out."""
    rows = (
        results.get(q.measure, arm, "", statistic)
        for q in headline_quantities(results.probes())
        for arm in (CONTROL, SUSPECT, *defended_arms(results))
        for statistic in ("value", "excess", "specific_excess", "removed_frac")
    )
    return {row.key: row.value for row in rows if row is not None and row.value is not None}


def headline_text(results: Results) -> str:
    """The table for the end of a run in a terminal: each number above its interval, fixed width, < 100 columns."""
    probes = results.probes()
    quantities = (
        *accuracy_quantities(probes)[:1],
        *effect_quantities(probes),
        *share_quantities(probes),
    )
    head = [("", ""), *((q.title, q.detail) for q in quantities)]
    lines = [tuple(column[0] for column in head), tuple(column[1] for column in head)]
    for arm in results.arms:
        cells = [cell_of(results.get(q.measure, arm), q.kind) for q in quantities]
        if any(cell.value != MISSING for cell in cells):
            lines.append((arm.label, *(cell.value.partition(" (")[0] for cell in cells)))
            lines.append(("", *(cell.interval for cell in cells)))
    for arm in (SUSPECT, *defended_arms(results)):
        found = [results.get(q.measure, arm, statistic="specific_excess") for q in quantities]
        if any(found):
            cells = [cell_of(row, q.kind) if row else Cell("") for row, q in zip(found, quantities, strict=True)]
            lines.append((f"specific, {arm.words or arm.defence or arm.label}", *(cell.value for cell in cells)))
            lines.append(("", *(cell.interval for cell in cells)))
    for arm in defended_arms(results):
        rows = [results.get(q.measure, arm, statistic="removed_frac") for q in quantities]
        if any(rows):
            cells = [removed_cell(row) if row else Cell("") for row in rows]
            lines.append((f"removed by {arm.words or arm.defence}", *(cell.value for cell in cells)))
            lines.append(("", *(cell.interval if row and row.value is not None else "" for cell, row in
                                zip(cells, rows, strict=True))))  # fmt: skip
    return fixed_width(lines, 2)
