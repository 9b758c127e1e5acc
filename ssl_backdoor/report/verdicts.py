"""The answer: a verdict a question in lines of at most 20 words, by plain rules from the estimates.

Attack: it *works* where the excess over the clean-trained control is significant (p after Holm's correction over all
that is told together under 0.05) by every measure. Defence: it *removes it* where at least 90 % of that excess is gone,
by the lower end of the interval, and *part of it* where that end is above 0. Clean accuracy is *kept* where the lower
end is within 3 points of the control's. Below two independent trainings of each encoder there is no interval: "cannot
tell", whatever the numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ssl_backdoor.report.cells import (
    accuracy_quantities,
    effect_quantities,
    listing,
    number,
    plural,
    quantity_of,
    span,
    with_interval,
)
from ssl_backdoor.report.comparisons import Comparison, Verdict, verdicts
from ssl_backdoor.report.estimates import FEWEST_CONTROLS, Estimate, Results, axis_of, fewest_units
from ssl_backdoor.report.frame import CONTROL, SUSPECT, EvaluatedModel, Measure, Statistic
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.sections.pairs import defended_arms, suspects_of
from ssl_backdoor.report.sections.sweep import x_label
from ssl_backdoor.report.specificity import judge_specificity
from ssl_backdoor.report.swept import Curve, accuracy_measure, curves_of, points_of
from ssl_backdoor.specs import FigureSpec, TableSpec, attack_words
from ssl_backdoor.words import method_label

MOST_WORDS = 20
KEPT = 0.03  # of clean accuracy
REMOVED = 0.9  # of an excess
_MOST_SHOWN = 3  # findings of one question whose numbers are told
_RATE, _FALSE_POSITIVES = "attack_success_rate", "target_false_positives"
_TITLES = {_RATE: "ASR", "targeted_success": "success"}


class Finding(NamedTuple):
    """What is answered of one attack, encoder or line of a table."""

    name: str
    verdict: str
    evidence: str = ""
    rank: float = 0.0
    """Findings of the highest are told first where there are many."""


class Findings(NamedTuple):
    """By question."""

    attack: list[Finding]
    defence: list[Finding]
    accuracy: list[Finding]


class Encoder(NamedTuple):
    """The estimates of one measure of the encoders of a point, and of their control."""

    results: Results
    measure: Measure
    point: Point
    axis: str = ""

    def get(
        self, statistic: Statistic = "value", measure: Measure | None = None, point: Point | None = None
    ) -> Estimate | None:
        """The estimate of ``measure`` or its own, at ``point`` or its own."""
        place = point or self.point
        return self.results.get(measure or self.measure, place.arm, place.variant, statistic, axis=self.axis, x=place.x)

    @property
    def control(self) -> Point | None:
        """The control that it is compared with: along an axis that of its place, else the one without poisons."""
        if not self.axis:
            return Point(self.results.control_variant(self.point.variant), CONTROL)
        held = {row.point for row in self.results.rows if (row.axis, row.point.arm) == (self.axis, CONTROL)}
        order = sorted(held, key=lambda at: (at.x != self.point.x, at.variant != self.point.variant, at))
        return order[0] if order else None

    @property
    def as_rate(self) -> "Encoder":
        """The same by the rate, where counts of false positives have one."""
        rate = self._replace(measure=self.measure._replace(metric=_RATE))
        return rate if self.measure.metric == _FALSE_POSITIVES and rate.get() else self

    @property
    def evidence(self) -> str:
        """ASR 75.2 % (1,354 of 1,800), control 6.5 %, unseen triggers 8.6 %."""
        rate = self.as_rate
        row, control = rate.get(), self.control
        if row is None or row.value is None:
            return ""
        quantity = quantity_of(rate.measure)
        num_images = row.n if row.interval == "wilson" else row.num_images
        count = f" ({row.value * num_images:,.0f} of {num_images:,})" if quantity.kind == "percent" else ""
        told = f"{_TITLES.get(rate.measure.metric, quantity.title)} {number(row.value, quantity.kind)}{count}"
        beside = (
            ("control", rate.get(point=control) if control else None),
            ("unseen triggers", rate.get(measure=rate.measure.under_unseen)),
        )
        return ", ".join([told, *(f"{name} {number(one.value, quantity.kind)}" for name, one in beside if one)])


def verdict_lines(found: Findings) -> list[str]:
    """The questions that the runs answer, each with its verdict and at most three lines of numbers.

    Where several attacks or encoders agree their verdict stands once.
    """
    questions = {"Attack": found.attack, "Defence": found.defence, "Clean accuracy": found.accuracy}
    lines = [line for name, each in questions.items() for line in _answer(name, list(dict.fromkeys(each)))]
    return lines or ["There is no answer: no poisoned encoder with a clean-trained one beside it."]


def _answer(question: str, found: Sequence[Finding]) -> list[str]:
    if not found:
        return []
    subjects = {one.name.partition(", ")[0] for one in found}
    if len(subjects) == 1 and all(", " in one.name for one in found):
        found = [one._replace(name=one.name.partition(", ")[2]) for one in found]
    by_verdict: dict[str, list[str]] = {}
    for one in found:
        by_verdict.setdefault(one.verdict, []).append(one.name)
    if len(by_verdict) == 1:
        head = f"{question}: {found[0].verdict}."
    else:
        head = f"{question}: {'; '.join(f'{text} for {listing(names)}' for text, names in by_verdict.items())}."
        if not is_short(head):
            counts = "; ".join(f"{text} for {len(names)} of {len(found)}" for text, names in by_verdict.items())
            head = f"{question}: {counts}."
        if not is_short(head):
            head = f"{question}: differs, see the tables."
    told = [one for one in found if one.evidence]
    if len(found) == 1:
        joined = " ".join([head, *(f"{_capital(one.evidence)}." for one in told)])
        return [joined] if is_short(joined) else [head, *(f"{_capital(one.evidence)}." for one in told)]
    if len(told) > _MOST_SHOWN:
        told = [max(told, key=lambda one: one.rank)]
    return [head, *(f"{_cut(one.name)}: {one.evidence}." for one in told)]


def is_short(line: str, most: int = MOST_WORDS) -> bool:
    """Whether it has at most ``most`` words."""
    return len(line.split()) <= most


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cut(name: str) -> str:
    words = name.split()
    return name if len(words) <= 5 else f"{' '.join(words[:5])} ..."


def why_untested(row: Estimate) -> str:
    """Why a difference has no verdict."""
    if row.num_units < 2:
        return "cannot tell (1 run)"
    if row.num_trainings < min(FEWEST_CONTROLS, row.num_units):
        return f"cannot tell ({plural(row.num_units, row.unit)}, {plural(row.num_trainings, 'control')})"
    if row.num_units < (fewest := fewest_units(row.unit, row.statistic)):
        return f"cannot tell ({plural(row.num_units, row.unit)}, {fewest} needed)"
    return f"cannot tell ({plural(row.num_units, row.unit)}, no spread)"


def judge_attack(rows: Sequence[Estimate], found: Sequence[Verdict]) -> str:
    """Of differences that are told together."""
    if not rows:
        return "cannot tell (no control)"
    if "above" in found:
        return "works" if set(found) == {"above"} else "works in part"
    if "untested" in found:
        return why_untested(rows[found.index("untested")])
    return "no, it lowers it" if "below" in found else "no effect found"


def judge_removed(row: Estimate | None) -> tuple[str, str]:
    """Verdict and evidence of a share removed."""
    if row is None:
        return "cannot tell (no control)", ""
    if row.value is None or row.low is None or row.high is None:
        is_few = row.num_trainings < min(FEWEST_CONTROLS, row.num_units)
        is_few = is_few or row.num_units < fewest_units(row.unit, row.statistic)
        return why_untested(row) if is_few else "cannot tell (no clear excess)", ""
    if row.low >= REMOVED:
        verdict = "removes it"
    elif row.low > 0:
        verdict = "removes part of it"
    else:
        verdict = "removes nothing" if row.high <= 1 - REMOVED else "cannot tell"
    return verdict, removed_text(row)


def removed_text(row: Estimate) -> str:
    """A share removed, never above all of the excess: 82 % of the excess (59 to 97)."""
    low, high, value = row.low or 0.0, row.high or 0.0, row.value or 0.0
    part = "all" if value >= 1 else f"{100 * value:.0f} %".replace("-", "−")
    ends = f"{100 * low:.0f} to {'all' if high >= 1 else f'{100 * high:.0f}'}".replace("-", "−")
    return f"{part} of the excess ({'to below the control' if low >= 1 else ends})"


def judge_accuracy(row: Estimate) -> tuple[str, str]:
    """Verdict and evidence of a difference in clean accuracy."""
    if row.low is None or row.high is None or row.value is None:
        return why_untested(row), ""
    if row.low >= -KEPT:
        return "kept", with_interval(row, "percent")
    if row.high < 0:
        return f"lost {-100 * row.value:.1f} points ({span(-row.high, -row.low, 'percent')})", ""
    return "cannot tell", with_interval(row, "percent")


def subject(models: Iterable[EvaluatedModel]) -> str:
    """Methods and attacks: "CLIP backdoor"."""
    runs = [model.run for model in models]
    methods = listing(list(dict.fromkeys(method_label(run.train.method.kind) for run in runs)))
    attacks = listing(list(dict.fromkeys(attack_words(run.attack.kind) for run in runs)))
    return f"{methods} {attacks}"


# ----------------------------------------------------------------------------------------------------- pairs


def told_variants(results: Results) -> tuple[str, ...]:
    """The main one, or where there is none (as with several defences) all."""
    return ("",) if suspects_of(results, "") else tuple(v for v in results.variants if suspects_of(results, v))


def main_effect(results: Results) -> Measure | None:
    """False positives by the linear probe with the most labels, or whatever judges the attack."""
    effects = [q for q in effect_quantities(results.probes()) if results.get(q.measure, SUSPECT, told_in(results))]
    counts = [q.measure for q in effects if q.kind == "count"]
    return counts[-1] if counts else effects[0].measure if effects else None


def told_in(results: Results) -> str:
    """The first of ``told_variants``."""
    return next(iter(told_variants(results)), "")


def of_pairs(results: Results) -> Findings:
    """Of runs that are paired with their controls: the main variant."""
    found, main = Findings([], [], []), main_effect(results)
    if main is None:
        return found
    accuracy = [q.measure for q in accuracy_quantities(results.probes())[:1]]
    for variant in told_variants(results):
        name = subject(suspects_of(results, variant))
        rows = [results.get(q.measure, SUSPECT, variant, "excess") for q in effect_quantities(results.probes())]
        measured = [row for row in rows if row is not None]
        verdict = judge_attack(measured, verdicts(measured))
        here = Encoder(results, main, Point(variant, SUSPECT))
        found.attack.append(Finding(name, _with_any_patch(verdict, here), here.evidence))
        arms = [arm for arm in defended_arms(results) if (arm, variant) in _held(results)]
        for arm in arms:
            row = results.get(main, arm, variant, "removed_frac")
            found.defence.append(Finding(f"{name}, {arm.words or arm.defence}", *judge_removed(row)))
        for arm in (SUSPECT, *arms):
            for measure in accuracy:
                if row := results.get(measure, arm, variant, "excess"):
                    found.accuracy.append(Finding(f"{name}, {arm.label}", *judge_accuracy(row)))
    return found if any(row.statistic == "excess" for row in results.rows) else Findings([], [], [])


def _held(results: Results) -> set[tuple[object, str]]:
    return {(model.made, model.run.variant) for model in results.models}


def _with_any_patch(verdict: str, at: Encoder) -> str:
    """``verdict``, and whether patches that no encoder was trained on do as well."""
    if not verdict.startswith("works"):
        return verdict
    (found,) = judge_specificity(at.results, [(at.measure, at.point)], at.axis)
    return f"{verdict} with any patch" if found.whose == "any patch" else verdict


# ---------------------------------------------------------------------------------------------------- tables


def of_tables(tables: Sequence[tuple[TableSpec, Sequence[Comparison]]], results: Results) -> Findings:
    """Of the first table with numbers, by line."""
    found = Findings([], [], [])
    measured = [(table, [line for line in lines if line.difference.num_units]) for table, lines in tables]
    table, lines = next(((table, lines) for table, lines in measured if lines), (tables[0][0], []))
    for line in lines:
        row, point = line.difference, line.difference.point
        here = Encoder(results, row.measure, point)
        level = here.get()
        if point.arm == SUSPECT:
            is_harm = row.measure.metric == "accuracy"
            swapped: dict[Verdict, Verdict] = {"above": "below", "below": "above"} if is_harm else {}
            verdict = judge_attack([row], [swapped.get(line.verdict, line.verdict)])
            rank = (level.value or 0.0) * (-1 if is_harm else 1) if level else 0.0
            found.attack.append(Finding(line.label, _with_any_patch(verdict, here), here.evidence, rank))
        elif not point.arm.is_clean:
            share = results.get(row.measure, point.arm, point.variant, "removed_frac")
            found.defence.append(Finding(line.label, *judge_removed(share), share.value or 0.0 if share else 0.0))
        kept = results.get(Measure("accuracy", "clean", table.probe), point.arm, point.variant, "excess")
        if kept is not None and not point.arm.is_clean:
            found.accuracy.append(Finding(line.label, *judge_accuracy(kept), -(kept.value or 0.0)))
    return found


# --------------------------------------------------------------------------------------------------- figures


def of_figures(figures: Sequence[FigureSpec], results: Results) -> Findings:
    """Of each attack along each axis: the first measure of the first series, its defences at the last point."""
    found = Findings([], [], [])
    told = set()
    for figure in figures:
        curves = [curve for curve in curves_of(figure, results) if curve.arm == SUSPECT]
        if not curves or figure.axis in ("similarity", "same_label") or (figure.attack, figure.axis) in told:
            continue
        told.add((figure.attack, figure.axis))
        _add_figure(found, figure, results, curves[0])
    return found


def judge_figure(figure: FigureSpec, results: Results, curve: Curve) -> Mapping[str, Verdict]:
    """The verdict on each difference that is told of a figure, by its key, corrected over all of them."""
    told = (curve.measure, accuracy_measure(figure, results))
    rows = [row for row in results.rows if (row.axis, row.statistic) == (axis_of(figure), "excess")]
    rows = [row for row in rows if row.measure in told]
    return dict(zip([row.key for row in rows], verdicts(rows), strict=True))


def _add_figure(found: Findings, figure: FigureSpec, results: Results, curve: Curve) -> None:
    axis, name = axis_of(figure), subject(m for m in results.models if m.run.attack.kind == figure.attack)
    at = [Encoder(results, curve.measure, row.point, axis) for row in curve.points]
    excess = [row for row in (one.get("excess") for one in at) if row is not None]
    judged = judge_figure(figure, results, curve)
    verdict, last = _judge_points(excess, [judged[row.key] for row in excess], axis), at[-1]
    where = f" at {x_label(axis, last.point.x)}" if len(at) > 1 else ""
    evidence = last.evidence.replace(" ", f"{where} ", 1) if where else last.evidence
    found.attack.append(Finding(name, _with_any_patch(verdict, last), evidence))
    accuracy = accuracy_measure(figure, results)
    points = [point for point in points_of(figure, results) if point.x == last.point.x and not point.arm.is_clean]
    for point in points:
        if point.arm == SUSPECT and point.variant != last.point.variant:
            continue
        if point.arm.defence:
            after = last._replace(point=point)
            left, before = after.get("excess"), last.get("excess")
            title = f"{name}, {point.arm.words or point.arm.defence}"
            level = after.evidence.partition(",")[0]
            found.defence.append(Finding(title, *_judge_left(before, left, level)))
        if accuracy and (row := last._replace(point=point).get("excess", accuracy)):
            found.accuracy.append(Finding(f"{name}, {point.arm.label}", *judge_accuracy(row)))


def _judge_points(rows: Sequence[Estimate], found: Sequence[Verdict], axis: str) -> str:
    """Over the points of a curve."""
    is_above = [verdict == "above" for verdict in found]
    if len(rows) < 2 or not any(is_above) or all(is_above):
        return judge_attack(rows[-1:], found[-1:]) if found[-1:] == ["untested"] else judge_attack(rows, found)
    if axis == "num_poisons" and is_above == sorted(is_above):  # once significant, significant from there on
        return f"works from {x_label(axis, rows[is_above.index(True)].point.x)} on"
    return f"works at {sum(is_above)} of {len(rows)} points"


def _judge_left(before: Estimate | None, left: Estimate | None, level: str) -> tuple[str, str]:
    """Of a defence along an axis, where no share removed is estimated: by the intervals of both excesses."""
    if before is None or left is None:
        return "cannot tell (no control)", ""
    if before.low is None or before.high is None or left.low is None or left.high is None:
        return why_untested(left), ""
    if before.low <= 0:
        return "cannot tell (no clear excess)", ""
    if left.high <= (1 - REMOVED) * before.low:
        return "removes it", level
    if left.high < before.low:
        return "removes part of it", level
    return ("removes nothing" if left.low >= REMOVED * before.high else "cannot tell"), level
