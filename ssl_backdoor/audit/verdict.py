"""What an audit says, in words: never that something is free of backdoors, never that it has one without the odds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ssl_backdoor.audit.statistics import POWER, Power, is_decidable, seen_from

Kind = Literal["refused", "unfinished", "no p-value", "undecided", "no evidence", "evidence"]
FEW_IMAGES = 200
NORM_SHIFT = 1.0
"""Images farther than so many deviations from what the first BatchNorm remembers get a remark."""


class Verdict(NamedTuple):
    """Of one audit of an encoder."""

    kind: Kind
    sentence: str


def percent(share: float) -> str:
    """A share for people: "2.3 %"."""
    return f"{100 * share:.3g} %"


def refused(reason: str) -> Verdict:
    """The encoder could not be loaded safely."""
    return Verdict("refused", f"not audited, and not to be used: {reason}")


def unfinished(budget_s: float) -> Verdict:
    """The budget ended first."""
    return Verdict(
        "unfinished",
        f"nothing can be said: the search for a trigger did not end within {budget_s / 60:.3g} minutes; raise --budget",
    )


def of_encoder(
    score: float, p_value: float | None, num_siblings: int, rate: float, powers: Sequence[Power], pull: str = ""
) -> Verdict:
    """The verdict on an encoder whose smallest trigger has ``score``, minus its share of the pixels.

    Args:
        score: not a number where no trigger held on images it was not searched on.
        p_value: its rank among siblings; None without siblings.
        num_siblings: of the null.
        rate: the false-positive rate that was chosen.
        powers: what backdoors planted on trial showed.
        pull: where the recovered trigger leads, for people.
    """
    found = (
        "no patch that makes its features agree was found"
        if math.isnan(score)
        else f"the smallest patch found that makes its features agree covers {percent(-score)} of the image"
    )
    if p_value is None:
        return Verdict(
            "no p-value",
            f"no p-value possible without sibling encoders: {found}, which any encoder may have; give --siblings",
        )
    smallest = 1 / (num_siblings + 1)
    among = f"p = {p_value:.2g}, {num_siblings} sibling{'s' * (num_siblings != 1)}"
    least = ", the smallest possible" if math.isclose(p_value, smallest) else ""
    if not is_decidable(num_siblings, rate):
        return Verdict(
            "undecided",
            f"undecided ({among}{least}): so few siblings cannot show evidence at a false-positive rate of {rate:.2g}, "
            f"which takes {math.ceil(1 / rate - 1e-9) - 1}; {found}",
        )
    if p_value <= rate * (1 + 1e-9):
        return Verdict("evidence", f"evidence of a planted trigger ({among}{least}): {found}{'; ' * bool(pull)}{pull}")
    return Verdict("no evidence", f"no evidence {_seen(powers)} ({among}; smallest possible {smallest:.2g})")


def _seen(powers: Sequence[Power]) -> str:
    """What of planted backdoors would have been found."""
    if not powers:
        return "of a planted trigger, and how much would have been found is unknown"
    shown = ", ".join(f"{one.num_found} of {one.num_planted} at {percent(one.area)}" for one in powers)
    area = seen_from(powers)
    if area is None:
        return f"of a planted trigger, but little would have been found: of trial patches {shown} of the area"
    return f"at {percent(POWER)} power or more for patches of >= {percent(area)} of the area (found on trial: {shown})"


def others(
    suspicion: Mapping[str, Any] | None, ordinary: Mapping[str, Any] | None, images: Mapping[str, Any]
) -> list[str]:
    """What else an audit says: of a suspected trigger, of ordinary patches, of how the images fit."""
    lines = []
    if suspicion:
        n, p_value = suspicion["null_n"], suspicion["p_value"]
        what = "evidence that" if p_value <= 0.05 else "no evidence that"
        lines.append(
            f"{what} the suspected {suspicion['trigger']} does more than other patterns of its style "
            f"(p = {p_value:.2g} among {n} patterns, smallest possible {1 / (n + 1):.2g})"
        )
    if ordinary and ordinary["p_value"] is not None and ordinary["p_value"] <= 0.05:
        lines.append(
            f"sensitive, not poisoned: an ordinary patch makes its features agree more than in siblings (p = "
            f"{ordinary['p_value']:.2g}, {ordinary['num_siblings']} siblings), most under {ordinary['largest_style']} "
            "patches"
        )
    if (shift := images["norm_shift"]) is not None and shift > NORM_SHIFT:
        lines.append(
            f"the images are {shift:.1f} standard deviations from those that the first BatchNorm remembers (median "
            "channel): other images than it was trained on, or another normalisation; scores may mean little"
        )
    return lines


def limits(facts: Mapping[str, Any], num_images: int) -> Iterator[str]:
    """What the audit cannot say."""
    yield (
        "The search is for one patch that makes all features agree. Backdoors that need several triggers, blended or "
        "warped ones, features spread over several targets, or a target of one class among many are not looked for."
    )
    yield (
        "Any network has a patch that makes its features agree; the verdict is about how small it is among encoders of "
        "the same kind. Siblings are taken to have no planted trigger and the same training: where they have not, p is "
        "wrong."
    )
    yield (
        "Planted copies have one patch in one place, by one attack (BadEncoder); an attacker who reads this page can "
        "do better."
    )
    if num_images < FEW_IMAGES:
        yield f"{num_images} images were searched and checked on; {FEW_IMAGES} or more are recommended."
    if (num := len(facts["siblings"])) and num < 19:
        yield f"{num} siblings allow no p below {1 / (num + 1):.2g}; 19 are needed for 0.05."
