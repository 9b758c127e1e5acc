"""Numbers as pure functions of what was predicted. NumPy and Arrow only: they re-run without a GPU.

Definitions are those of ssl_backdoor/DEFINITIONS.md. Saha et al. 2022 (https://arxiv.org/abs/2105.10123) count false
positives; Carlini & Terzis 2022 (https://arxiv.org/abs/2106.09667) define the z-score.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from ssl_backdoor.tables import MEASUREMENTS

_WILSON = " Interval: Wilson 95 % over the n images."
_NO_INTERVAL = " No interval: the pairs share images; compare seeds instead."
_RECALL = (
    "Share of the n {0} that find one of their own, {1} they come with, among the {3} of all {2} by cosine; a stranger "
    "as near as their own counts as nearer. Clean labelled test images that have a caption. "
    "Interval: Wilson 95 % over the n {0}."
)
DEFINITION = {
    "accuracy": "Share of all n test images predicted as their own class; triggered images of the target class count "
    "as correct when predicted as it." + _WILSON,
    "target_false_positives": "Number of the n test images NOT of the target class that are predicted as it (column "
    "sum minus diagonal of the confusion matrix)." + _WILSON,
    "attack_success_rate": "target_false_positives over the n test images not of the target class." + _WILSON,
    "attack_success_rate_all": "Share of all n test images, those of the target class included, that are predicted as "
    "the target class." + _WILSON,
    "false_positives": "Number of the n test images not of this class that are predicted as it." + _WILSON,
    "top_class_share": "Share of all n test images in the class that is predicted most often. No interval: the class "
    "is chosen by the same images.",
    "z_score_sd": "(mean cosine of distinct triggered pairs - mean cosine of distinct clean pairs) / standard "
    "deviation of the clean pairs' cosines, over the pairs of n test images." + _NO_INTERVAL,
    "z_score_variance": "(mean cosine of distinct triggered pairs - mean cosine of distinct clean pairs) / variance of "
    "the clean pairs' cosines, over the pairs of n test images, as printed in the paper." + _NO_INTERVAL,
    "targeted_success": "Share of the n target images x' (unaltered test images) that the probe predicts as the class "
    "y' that the attacker chose for each. Interval: Wilson 95 % over the n targets.",
    "target_rank": "Mean over the n target images x' of the rank of y' among all classes by the probe's scores: 1 is "
    "first; of equal scores the lower label comes first. No interval: one model; compare models instead.",
    "image_to_text_recall_1": _RECALL.format("images", "a caption", "distinct captions", "nearest"),
    "image_to_text_recall_5": _RECALL.format("images", "a caption", "distinct captions", "five nearest"),
    "text_to_image_recall_1": _RECALL.format("distinct captions", "an image", "images", "nearest"),
    "text_to_image_recall_5": _RECALL.format("distinct captions", "an image", "images", "five nearest"),
    "similarity_clean": "Mean cosine of distinct pairs of the n clean test images." + _NO_INTERVAL,
    "similarity_triggered": "Mean cosine of distinct pairs of the n test images under this condition's trigger."
    + _NO_INTERVAL,
}
SPREAD = ("accuracy", "attack_success_rate", "target_false_positives", "targeted_success")
"""Measurements whose spread over draws of the labelled subset is told."""
UNSEEN = "unseen_trigger"
"""The condition of test images under triggers that no encoder was trained on; in predictions with the number of one."""
_Z95 = float(ndtri(0.5 + 0.5 * 0.95))
_FLAT = 1e-12
_BLOCK_ROWS = 2**16  # so many at once: what is held does not grow with the images


class Measurement(NamedTuple):
    """One number: a row of MEASUREMENTS. ``low`` and ``high`` are None where no interval applies."""

    name: str
    condition: str
    probe: str
    value: float
    n: int
    low: float | None
    high: float | None
    definition: str


class Similarity(NamedTuple):
    """Mean and population variance of the cosine over distinct pairs."""

    mean: float
    variance: float


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of ``hits`` of ``n`` as a share (Wilson 1927).

    To the bit that of scipy's binomtest, which makes an exact test as well: with many classes most of an evaluation.
    """
    share, z = hits / n, _Z95
    denominator = 2 * (n + z**2)
    centre = (2 * n * share + z**2) / denominator
    half = z / denominator * math.sqrt(4 * n * share * (1 - share) + z**2)
    return centre - half if hits else 0.0, centre + half if hits < n else 1.0


def measure_share(name: str, condition: str, probe: str, hits: int, n: int) -> Measurement:
    """``hits`` of ``n`` as a share with its Wilson interval."""
    return _Count(name, hits, n).measured(condition, probe)


def measure_targets(targets: pa.Table) -> tuple[Measurement, ...]:
    """For each probe of the TARGETS table: how many x' are predicted as y', and the mean rank of y'."""
    rows: list[Measurement] = []
    for probe in pc.unique(targets["probe"]).to_pylist():
        here = targets.filter(pc.equal(targets["probe"], probe))
        hits = pc.sum(pc.equal(here["predicted"], here["target_label"])).as_py()
        rank = float(pc.mean(here["rank"]).as_py())
        rows.append(measure_share("targeted_success", "target", probe, hits, here.num_rows))
        text = DEFINITION["target_rank"]
        rows.append(Measurement("target_rank", "target", probe, rank, here.num_rows, None, None, text))
    return tuple(rows)


def confusion_matrix(label: ArrayLike, predicted: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Counts, int64 (num_classes, num_classes): row = true label, column = predicted label."""
    cell = np.asarray(label, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def measure_predictions(
    predictions: pa.Table, classes: Sequence[str], target_label: int | None
) -> tuple[Measurement, ...]:
    """Every number that the PREDICTIONS table gives, for each condition and probe in it.

    A number whose n would be 0 is left out, never 0; so are the target's numbers when there is no target.
    """
    matrices: dict[tuple[str, str], NDArray[np.int64]] = {}
    for start in range(0, predictions.num_rows, _BLOCK_ROWS):
        block = predictions.slice(start, _BLOCK_ROWS)
        groups = block.group_by(["condition", "probe"], use_threads=False).aggregate([]).to_pylist()
        for condition, probe in [(group["condition"], group["probe"]) for group in groups]:
            here = block.filter(pc.and_(pc.equal(block["condition"], condition), pc.equal(block["probe"], probe)))
            counted = confusion_matrix(here["label"].to_numpy(), here["predicted"].to_numpy(), len(classes))
            matrices[condition, probe] = matrices.get((condition, probe), 0) + counted
    rows: list[Measurement] = []
    for (condition, probe), matrix in matrices.items():
        for count in _counts(matrix, classes, target_label):
            rows += [count.measured(condition, probe)] if count.n else []
    return tuple(rows)


def average_unseen(rows: Iterable[Measurement]) -> list[Measurement]:
    """``rows`` with those of the single unseen triggers averaged into one each, in the place of the first."""
    found: dict[tuple[str, str, str], list[Measurement]] = {}
    for row in rows:
        condition = UNSEEN if row.condition.startswith(f"{UNSEEN}_") else row.condition
        found.setdefault((row.name, condition, row.probe), []).append(row)
    return [_average(group, key[1]) if key[1] == UNSEEN else group[0] for key, group in found.items()]


def _average(rows: Sequence[Measurement], condition: str) -> Measurement:
    text = rows[0].definition.partition(" Interval:")[0].partition(" No interval:")[0]
    text += f" Mean over {len(rows)} trigger(s) of the same style that no encoder was trained on."
    text += " No interval: they share images."
    value = sum(row.value for row in rows) / len(rows)
    return rows[0]._replace(condition=condition, value=value, low=None, high=None, definition=text)


class _Count(NamedTuple):
    """``hits`` of ``n`` images; reported as a share or, where ``as_count``, as it is."""

    name: str
    hits: int
    n: int
    as_count: bool = False
    has_interval: bool = True

    def measured(self, condition: str, probe: str) -> Measurement:
        scale = 1 if self.as_count else self.n
        low = high = None
        if self.has_interval:
            low, high = (bound * self.n / scale for bound in wilson(self.hits, self.n))
        definition = DEFINITION[self.name.partition(":")[0]]
        return Measurement(self.name, condition, probe, self.hits / scale, self.n, low, high, definition)


def _counts(matrix: NDArray[np.int64], classes: Sequence[str], target_label: int | None) -> Iterable[_Count]:
    n = int(matrix.sum())
    predicted_as = matrix.sum(axis=0)
    false_positives = predicted_as - matrix.diagonal()
    not_of = n - matrix.sum(axis=1)
    yield _Count("accuracy", int(matrix.trace()), n)
    if target_label is not None:
        hits, others = int(false_positives[target_label]), int(not_of[target_label])
        yield _Count("target_false_positives", hits, others, as_count=True)
        yield _Count("attack_success_rate", hits, others)
        yield _Count("attack_success_rate_all", int(predicted_as[target_label]), n)
    yield _Count("top_class_share", int(predicted_as.max()), n, has_interval=False)
    for label, name in enumerate(classes):
        yield _Count(f"false_positives:{name}", int(false_positives[label]), int(not_of[label]), as_count=True)


def pair_similarity(features: NDArray[np.float32]) -> Similarity | None:
    """Cosine over all distinct pairs of the rows of ``features`` (N, D), exactly and without forming the pairs.

    With unit rows f and G = F^T F:  sum_{u != v} <u, v> = |sum f|^2 - N  and  sum_{u != v} <u, v>^2 = |G|_F^2 - N.
    NOTE: DECREE's code counts the pairs of an image with itself; the paper's "distinct pairs" are meant here.

    Returns:
        None when there is no pair (N < 2).
    """
    n, dim = features.shape
    if n < 2:
        return None
    total, gram, own, own_squared = np.zeros(dim), np.zeros((dim, dim)), 0.0, 0.0
    for start in range(0, n, _BLOCK_ROWS):
        rows = features[start : start + _BLOCK_ROWS].astype(np.float64)
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        squared = np.einsum("nd,nd->n", unit, unit)  # 1 each, 0 for a zero row
        total += unit.sum(axis=0)
        gram += unit.T @ unit
        own += squared.sum()
        own_squared += np.square(squared).sum()
    pairs = n * (n - 1)
    mean = (np.square(total).sum() - own) / pairs
    second = (np.square(gram).sum() - own_squared) / pairs
    return Similarity(float(mean), float(max(second - mean**2, 0.0)))


def measure_features(
    clean: NDArray[np.float32], triggered: NDArray[np.float32], condition: str
) -> tuple[Measurement, ...]:
    """z-scores and mean similarities of ``triggered`` against ``clean``, both (N, D), as rows of ``condition``.

    Both readings of the z-score are given: the paper's text speaks of deviations, its formula divides by the variance.
    Left out: everything with fewer than two images, the z-scores when all clean pairs are equally similar.
    """
    before, after = pair_similarity(clean), pair_similarity(triggered)
    if before is None or after is None:
        return ()
    values = {"similarity_clean": before.mean, "similarity_triggered": after.mean}
    if before.variance > _FLAT:
        values["z_score_sd"] = (after.mean - before.mean) / before.variance**0.5
        values["z_score_variance"] = (after.mean - before.mean) / before.variance
    return tuple(
        Measurement(name, condition, "features", value, len(clean), None, None, DEFINITION[name])
        for name, value in values.items()
    )


def subset_mark(draw: int) -> str:
    """What the name of a probe on the labelled subset ``draw`` ends with: nothing for the first."""
    return f"#{draw + 1}" if draw else ""


def average_subsets(rows: Iterable[Measurement]) -> list[Measurement]:
    """``rows`` with those of one probe on several labelled subsets ("linear_1", "linear_1#2", ...) as their mean.

    Bounds are averaged like values: the interval speaks of the test images. What is in ``SPREAD`` has the subsets'
    standard deviation after it, label_sd_name, n the number of subsets.
    """
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for row in rows:
        groups.setdefault((row.name, row.condition, row.probe.partition("#")[0]), []).append(row)
    averaged = list[Measurement]()
    for (name, condition, probe), group in groups.items():
        first, values = group[0], [row.value for row in group]
        if len(group) == 1:
            averaged.append(first)
            continue
        bounds = [(row.low, row.high) for row in group if row.low is not None and row.high is not None]
        low, high = np.mean(bounds, axis=0).tolist() if len(bounds) == len(group) else (None, None)
        text = f"{first.definition} Mean over {len(group)} draws of the labelled subset."
        averaged.append(first._replace(value=float(np.mean(values)), low=low, high=high, definition=text))
        if name in SPREAD:
            spread, text = float(np.std(values, ddof=1)), f"Standard deviation of {name} over draws of the labels."
            averaged.append(Measurement(f"label_sd_{name}", condition, probe, spread, len(group), None, None, text))
    return averaged


def measurements_table(rows: Iterable[Measurement]) -> pa.Table:
    """``rows`` as a MEASUREMENTS table."""
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=MEASUREMENTS)
