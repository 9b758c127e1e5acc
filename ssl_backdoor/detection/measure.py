"""How well scores tell: pure functions of the scores and of the truth, with intervals whose coverage is tested."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

from ssl_backdoor.evaluate.metrics import Measurement, wilson

LEVEL = 0.05
"""A p-value up to this is an alarm."""
DEFINITION = {
    "filter_recall": "Share of the n poisoned training samples that the filter leaves out. Interval: Wilson 95 %.",
    "filter_false_positive_rate": "Share of the n clean training samples that the filter leaves out. "
    "Interval: Wilson 95 %.",
    "detection_auroc": "Probability that a poisoned (or triggered) one scores higher than a clean one, ties counted as "
    "half, over the n that have a score. Interval: DeLong 95 % on the logit scale, by Student's t.",
    "detection_true_positive_rate": f"Share of the n poisoned (or triggered) ones with a p-value of at most {LEVEL}. "
    "Interval: Wilson 95 %.",
    "detection_false_positive_rate": f"Share of the n clean ones with a p-value of at most {LEVEL}. "
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


def measure_filter(who: str, is_left_out: NDArray[np.bool_], is_poison: NDArray[np.bool_]) -> Iterator[Measurement]:
    """Of the filter ``who``, bool (N,) each."""
    for name, group in (("filter_recall", is_poison), ("filter_false_positive_rate", ~is_poison)):
        if group.any():
            yield _share(name, "training", who, is_left_out[group])


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
    groups = (("detection_true_positive_rate", is_positive), ("detection_false_positive_rate", ~is_positive))
    for name, group in groups:
        if group.any():
            yield _share(name, level, who, p_values[group] <= LEVEL)


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
