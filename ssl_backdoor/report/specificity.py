"""Whether a backdoor is the trigger's own, or one that any patch of its style opens: clauses for the answer.

The *excess* is under the attack's own trigger, the *specific excess* what is left of it after the same under unseen
triggers. Both, and the excess under unseen triggers, of all that is told are judged together (Holm).
"""

from collections.abc import Iterator, Sequence

from ssl_backdoor.report.cells import number, quantity_of, with_interval
from ssl_backdoor.report.comparisons import Verdict, verdicts
from ssl_backdoor.report.estimates import Estimate, Results
from ssl_backdoor.report.frame import Measure, Statistic
from ssl_backdoor.report.layout import Point

_MOST = 0.5  # of an excess without an interval: what is said to come with any patch


def describe_specificity(results: Results, places: Sequence[tuple[Measure, Point]], axis: str = "") -> Iterator[str]:
    """What the excess of each measure and point owes to the trigger itself; "" where that was not measured."""

    def row(measure: Measure, point: Point, is_specific: bool = False) -> Estimate | None:
        statistic: Statistic = "specific_excess" if is_specific else "excess"
        return results.get(measure, point.arm, point.variant, statistic, axis=axis, x=point.x)

    rows = [(row(m, p), row(m.under_unseen, p), row(m, p, is_specific=True)) for m, p in places]
    judged = iter(verdicts([one for three in rows for one in three if one is not None]))
    for own, unseen, specific in rows:
        own_verdict, unseen_verdict, specific_verdict = (
            next(judged) if one is not None else "unmeasured" for one in (own, unseen, specific)
        )
        if own is None or specific is None or specific.value is None:
            yield ""
            continue
        kind = quantity_of(own.measure).kind
        told = f"{with_interval(specific, kind)} of an excess of {number(own.value, kind, True)}"
        judgement = _judge(own, specific, own_verdict, unseen_verdict, specific_verdict)
        yield f"the specific excess, own trigger less unseen ones, is {told}{judgement}"


def _judge(own: Estimate, specific: Estimate, of_own: Verdict, of_unseen: Verdict, of_specific: Verdict) -> str:
    if of_specific == "untested":
        is_common = (own.value or 0.0) > 0 and (specific.value or 0.0) < _MOST * (own.value or 0.0)
        return ": most of it comes with any patch of the trigger's style" if is_common else ""
    if of_specific == "above":
        return ": the trigger's own" + (", though other patches of its style do some" if of_unseen == "above" else "")
    if of_own == of_unseen == "above":
        return ": a backdoor that any patch of the trigger's style opens"
    return ": not shown to be the trigger's own"
