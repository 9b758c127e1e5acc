"""Whether a backdoor is the trigger's own, or one that any patch of its style opens.

The *excess* is under the attack's own trigger, the *specific excess* what is left of it after the same under unseen
triggers. Both, and the excess under unseen triggers, of all that is told are judged together (Holm).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ssl_backdoor.report.cells import number, quantity_of, with_interval
from ssl_backdoor.report.comparisons import Verdict, verdicts
from ssl_backdoor.report.estimates import Estimate, Results
from ssl_backdoor.report.frame import Measure, Statistic
from ssl_backdoor.report.layout import Point

_MOST = 0.5  # of an excess without an interval: what is said to come with any patch
Whose = Literal["own", "mostly own", "any patch", "mostly any patch", "not shown", "untested", "unmeasured"]
_WORDS: dict[Whose, str] = {
    "own": ": the trigger's own",
    "mostly own": ": the trigger's own, though other patches do some",
    "any patch": ": a backdoor that any patch of the trigger's style opens",
    "mostly any patch": ": most of it comes with any patch of the trigger's style",
    "not shown": ": not shown to be the trigger's own",
    "untested": "",
    "unmeasured": "",
}


class Specificity(NamedTuple):
    """What the excess of one measure and point owes to the trigger itself."""

    whose: Whose
    own: Estimate | None = None
    specific: Estimate | None = None

    @property
    def text(self) -> str:
        """Of a sentence; empty where it was not measured."""
        if self.own is None or self.specific is None:
            return ""
        kind = quantity_of(self.own.measure).kind
        told = f"{with_interval(self.specific, kind)}, whole excess {number(self.own.value, kind, True)}"
        return f"specific excess {told}{_WORDS[self.whose]}"


def judge_specificity(results: Results, places: Sequence[tuple[Measure, Point]], axis: str = "") -> list[Specificity]:
    """Of each measure and point."""

    def row(measure: Measure, point: Point, statistic: Statistic = "excess") -> Estimate | None:
        return results.get(measure, point.arm, point.variant, statistic, axis=axis, x=point.x)

    rows = [(row(m, p), row(m.under_unseen, p), row(m, p, "specific_excess")) for m, p in places]
    judged = iter(verdicts([one for three in rows for one in three if one is not None]))
    found = []
    for own, unseen, specific in rows:
        of_own, of_unseen, of_specific = (
            next(judged) if one is not None else "unmeasured" for one in (own, unseen, specific)
        )
        if own is None or specific is None or specific.value is None:
            found.append(Specificity("unmeasured"))
        else:
            found.append(Specificity(_judge(own, specific, of_own, of_unseen, of_specific), own, specific))
    return found


def _judge(own: Estimate, specific: Estimate, of_own: Verdict, of_unseen: Verdict, of_specific: Verdict) -> Whose:
    if of_specific == "untested":
        is_common = (own.value or 0.0) > 0 and (specific.value or 0.0) < _MOST * (own.value or 0.0)
        return "mostly any patch" if is_common else "untested"
    if of_specific == "above":
        return "mostly own" if of_unseen == "above" else "own"
    return "any patch" if of_own == of_unseen == "above" else "not shown"
