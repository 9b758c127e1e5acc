"""How well scores tell: pure functions of the scores and of the truth, with intervals whose coverage is tested."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

from ssl_backdoor.detection.ranking import share_of
from ssl_backdoor.evaluate.metrics import Measurement, wilson

LEVEL = 0.05
"""A p-value up to this is an alarm."""
RATES = (0.01, 0.05)
"""False-positive rates at which a filter's recall is given."""
UNSEEN_INPUT = "input_unseen"
"""What is judged: inputs under other triggers of the style, which no encoder was trained on."""
BUDGETS = (0.01, 0.05, 0.1)
"""Shares of all samples that a filter might leave out."""
_NO_INTERVAL = " No interval: the threshold is one of these scores."
_TIES = (
    " Of equal scores at the border each counts by the share of them that is within; no score ranks last. Interval: "
    "Wilson 95 %, of the nearest whole number."
)
_AT_RATE = (
    "Share of the n poisoned samples that score higher than all but {0:.0%} of the clean ones, rounded down, among "
    "those that have a score." + _NO_INTERVAL
)
_AT_BUDGET = "Share of the n poisoned samples among the {0:.0%} of all, rounded down, that score highest." + _TIES
DEFINITION = {
    "filter_recall": "Share of the n poisoned training samples that the filter leaves out. Interval: Wilson 95 %.",
    "filter_false_positive_rate": "Share of the n clean training samples that the filter leaves out. "
    "Interval: Wilson 95 %.",
    "filter_average_precision": "Mean over the poisoned samples of the precision among all that score at least as "
    "high, over the n that have a score. No interval: precision depends on the other scores.",
    "filter_false_positive_rate_at_95_recall": "Share of the n clean samples that score at least as high as the 95 % "
    "of the poisoned samples that score highest, among those that have a score." + _NO_INTERVAL,
    **{f"filter_recall_at_{100 * rate:.0f}_false_positives": _AT_RATE.format(rate) for rate in RATES},
    "filter_precision_at_num_poisons": "Share of poisoned ones among the n samples that score highest, n being the "
    "true number of poisoned ones." + _TIES,
    **{f"filter_recall_at_{100 * budget:.0f}": _AT_BUDGET.format(budget) for budget in BUDGETS},
    "detection_auroc": "Probability that a poisoned (or triggered) one scores higher than a clean one, ties counted as "
    "half, over the n that have a score. Interval: DeLong 95 % on the logit scale, by Student's t.",
    "detection_true_positive_rate": "Share of the n poisoned (or triggered) ones, of those with a p-value, for which "
    f"it is at most {LEVEL}. Interval: Wilson 95 %.",
    "detection_false_positive_rate": f"Share of the n clean ones that have a p-value for which it is at most {LEVEL}. "
    "Interval: Wilson 95 %.",
    "detection_found": "1 where the detector found something to score in the encoder, 0 where it did not. No interval: "
    "one encoder.",
    "detection_score": "The detector's score of the encoder. No interval: one encoder.",
    "detection_p_value": "How often something clean scores as high. No interval: one encoder.",
}


def auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> tuple[float, float, float]:
    """Area under the ROC curve of ``positive`` scores (P,) over ``negative`` ones (Q,), and its 95 % interval.

    DeLong et al. 1988 (https://doi.org/10.2307/2531595): the variance is that of each score's own placement among the
    others; the interval is symmetric on the logit scale, so that it stays in [0, 1], with Student's t of the smaller
    group's degrees of freedom, without which few scores would cover too little. Where placements do not vary (an
    area of 0 or 1, or equal scores) the variance is that of a share of the smaller group, half a score off its end.
    """
    num_positive, num_negative = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    over_negative = (ranks[:num_positive] - stats.rankdata(positive)) / num_negative
    over_positive = 1.0 - (ranks[num_positive:] - stats.rankdata(negative)) / num_positive
    area = float(over_negative.mean())
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (over_negative, over_positive) if len(part) > 1)
    fewest = min(num_positive, num_negative)
    edge = 0.5 / (fewest + 1)
    centre = min(max(area, edge), 1.0 - edge)
    spread = math.sqrt(variance or centre * (1.0 - centre) / fewest) / (centre * (1.0 - centre))
    half = float(stats.t.ppf(0.975, max(1, fewest - 1))) * spread
    low, high = (float(expit(logit(centre) + sign * half)) for sign in (-1, 1))
    return area, min(low, area), max(high, area)


def average_precision(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Of ``positive`` scores (P,) among ``negative`` ones (Q,): the step-wise area under precision over recall."""
    above, false = (_num_at_least(values, positive) for values in (positive, negative))
    return float((above / (above + false)).mean())


def false_positive_rate_at(recall: float, positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """The least false-positive rate of a threshold, one of the ``positive`` scores, with at least that recall."""
    threshold = np.sort(positive)[::-1][math.ceil(round(recall * len(positive), 9)) - 1]
    return float((negative >= threshold).mean())


def recall_at(rate: float, positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """The greatest recall of a threshold with at most that false-positive rate."""
    allowed = share_of(rate, len(negative))
    border = np.sort(negative)[::-1][allowed] if allowed < len(negative) else -np.inf
    return float((positive > border).mean())


def hits_among_top(number: int, scores: NDArray[np.float64], is_poison: NDArray[np.bool_]) -> float:
    """Poisoned ones among the ``number`` highest of ``scores`` (N,), no score being the lowest.

    Of equal scores at the border each counts by the share of them that is within.
    """
    if not 0 < number <= len(scores):
        return 0.0
    filled = np.where(np.isnan(scores), -np.inf, scores)
    border = np.sort(filled)[::-1][number - 1]
    surely, at_border = filled > border, filled == border
    share = (number - surely.sum()) / at_border.sum()
    return float(is_poison[surely].sum() + share * is_poison[at_border].sum())


def conformal_p_values(
    scores: NDArray[np.float64], references: NDArray[np.int64], exempt: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Split-conformal p-values (N,) of ``scores`` (N,) among those of ``references``, rows known to be clean.

    p = (1 + number of references that score at least as high) / (1 + number of references): of a clean sample that
    could be exchanged with them p is at most t with a probability of at most t. Not a number for the rows of
    ``exempt``, which are no such samples, and where there is no score. References without a score are left out.
    """
    known = scores[references]
    known = known[~np.isnan(known)]
    p_values = np.divide(1 + _num_at_least(known, scores), 1 + len(known), dtype=np.float64)
    p_values[np.isnan(scores)] = np.nan
    p_values[exempt] = np.nan
    return p_values


def _num_at_least(values: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of ``values`` are at least each of ``thresholds``."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, "left")


def measure_filter(
    who: str,
    scores: NDArray[np.float64],
    is_left_out: NDArray[np.bool_],
    p_values: NDArray[np.float64] | None,
    is_poison: NDArray[np.bool_],
) -> Iterator[Measurement]:
    """Of the filter ``who``, (N,) each; where nothing is poisoned the false alarms alone."""
    for name, group in (("filter_recall", is_poison), ("filter_false_positive_rate", ~is_poison)):
        if group.any():
            yield _share(name, "training", who, is_left_out[group])
    yield from measure_detection(who, scores, p_values, is_poison, "training")
    known = ~np.isnan(scores)
    positive, negative = scores[known & is_poison], scores[known & ~is_poison]
    if len(positive) and len(negative):
        for name, value, count in (
            ("filter_average_precision", average_precision(positive, negative), int(known.sum())),
            (
                "filter_false_positive_rate_at_95_recall",
                false_positive_rate_at(0.95, positive, negative),
                len(negative),
            ),
            *(
                (
                    f"filter_recall_at_{100 * rate:.0f}_false_positives",
                    recall_at(rate, positive, negative),
                    len(positive),
                )
                for rate in RATES
            ),
        ):
            yield Measurement(name, "training", who, value, count, None, None, DEFINITION[name])
    if num_poisons := int(is_poison.sum()):
        tops = {"filter_precision_at_num_poisons": num_poisons}
        tops |= {f"filter_recall_at_{100 * budget:.0f}": share_of(budget, len(scores)) for budget in BUDGETS}
        for name, number in tops.items():
            hits = hits_among_top(number, scores, is_poison)
            low, high = wilson(round(hits), num_poisons)
            value = hits / num_poisons
            yield Measurement(
                name, "training", who, value, num_poisons, min(low, value), max(high, value), DEFINITION[name]
            )


def measure_detection(
    who: str,
    scores: NDArray[np.float64],
    p_values: NDArray[np.float64] | None,
    is_positive: NDArray[np.bool_],
    level: str,
) -> Iterator[Measurement]:
    """Of the detector ``who``, (N,) each; where nothing is positive the false alarms alone."""
    known = ~np.isnan(scores)
    positive, negative = scores[known & is_positive], scores[known & ~is_positive]
    if len(positive) and len(negative):
        name, (area, low, high) = "detection_auroc", auroc(positive, negative)
        yield Measurement(name, level, who, area, int(known.sum()), low, high, DEFINITION[name])
    if p_values is None:
        return
    told = ~np.isnan(p_values)
    groups = (("detection_true_positive_rate", is_positive), ("detection_false_positive_rate", ~is_positive))
    for name, group in ((name, group & told) for name, group in groups):
        if group.any():
            yield _share(name, level, who, p_values[group] <= LEVEL)


def measure_inputs(
    who: str,
    scores: NDArray[np.float64],
    p_values: NDArray[np.float64] | None,
    conditions: NDArray[np.str_],
    compared: str,
) -> Iterator[Measurement]:
    """Of the detector ``who`` on clean and triggered inputs, then on the clean ones and those under unseen triggers.

    ``conditions`` (N,) as ``run.detect`` gives them; references are left out. ``compared`` as ``measure_encoder``. The
    false-positive rate stands once: the clean ones are the same.
    """
    for name, level in (("triggered", "input"), ("unseen_trigger", UNSEEN_INPUT)):
        shown, is_positive = np.isin(conditions, ["clean", name]), conditions == name
        told = None if p_values is None else p_values[shown]
        for row in measure_detection(who, scores[shown], told, is_positive[shown], level) if is_positive.any() else ():
            if level == "input" or row.name != "detection_false_positive_rate":
                yield row._replace(definition=f"{row.definition} {compared}")


def _share(name: str, condition: str, probe: str, hits: NDArray[np.bool_]) -> Measurement:
    low, high = wilson(int(hits.sum()), len(hits))
    return Measurement(name, condition, probe, float(hits.mean()), len(hits), low, high, DEFINITION[name])


def measure_encoder(who: str, score: float, p_value: float | None, compared: str = "") -> Iterator[Measurement]:
    """One encoder's, by the detector ``who``; ``compared``: a sentence on what score and p-value are comparable with.

    A score that is not a number is none: nothing was found.
    """
    found = None if math.isnan(score) else score
    for name, value in (
        ("detection_found", float(found is not None)),
        ("detection_score", found),
        ("detection_p_value", p_value),
    ):
        if value is not None and not math.isnan(value):
            definition = DEFINITION[name].replace("No interval", f"{compared} No interval".strip())
            yield Measurement(name, "encoder", who, value, 1, None, None, definition)


def rank_among(score: float, null: Sequence[float]) -> float | None:
    """P = (1 + #{null >= score}) / (m + 1) over the m scores of ``null``; None where there are none.

    Where nothing was found, which is not a number, the score lies below all that were found, and among equals of its
    own kind: so p is 1 for an encoder in which nothing was found. At least 1 / (m + 1): with 19 siblings 0.05.
    """
    if not len(null):
        return None
    own, others = (np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf) for values in ([score], null))
    return float((1 + (others >= own).sum()) / (len(others) + 1))
