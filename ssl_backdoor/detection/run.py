"""Run a filter or a detector: give it a pool that tells nothing, then compare what it says with what is true."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.rows import captions_of, rows_of
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.detection.measure import measure_detection, measure_encoder, measure_filter, rank_among
from ssl_backdoor.detection.pool import Detection, Pool
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.metrics import Measurement, measurements_table
from ssl_backdoor.poison.triggers.tensors import apply_to_tensor
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs import Detector, Filter, Trigger
from ssl_backdoor.tables import DETECTIONS, FILTERED


def filter_samples(
    defence: Filter,
    dataset: Dataset,
    overlay: Overlay | None,
    encoder: Path | None,
    out: Path,
    seed: int,
    device: str,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Judge the training samples of ``dataset`` under ``overlay``.

    Writes under ``out``: filtered.parquet (FILTERED, in the order of ``rows_of``) and measurements.parquet.

    Returns:
        The summary: num_samples, num_left_out, and measurements by name.

    Raises:
        SpecError: the filter says nothing of some samples, or leaves out all.
        DataError: an image cannot be read.
    """
    pool, keys, is_poison = _training_pool(dataset, overlay, seed, device)
    verdicts = defence.judge(pool.pool, encoder, seed, on_progress)
    _check_length(f"filter {defence.kind}", len(verdicts.scores), len(keys))
    scores, left_out = pool.in_order(verdicts.scores.double().numpy()), pool.in_order(verdicts.is_left_out.numpy())
    if left_out.all():
        raise SpecError(f"the filter {defence.kind} leaves out all {len(keys)} training samples: let it keep some")
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([keys, scores, left_out], schema=FILTERED), out / "filtered.parquet")
    summary = {"num_samples": len(keys), "num_left_out": int(left_out.sum())}
    return summary | _written(measure_filter(defence.kind, left_out, is_poison), out)


def detect(
    detector: Detector,
    dataset: Dataset,
    overlay: Overlay | None,
    encoder: Path,
    trigger: Trigger | None,
    source: bytes | None,
    out: Path,
    seed: int,
    device: str,
    on_progress: OnProgress = silent,
    siblings: Sequence[float] = (),
) -> dict[str, Any]:
    """Let ``detector`` judge the training samples, inputs under ``trigger``, or the encoder.

    ``siblings`` are its scores of clean encoders of the same training under other seeds, not a number where it found
    nothing. Where there are some an encoder's p-value is its rank among them, else the detector's own, if it gives one.

    Writes under ``out``: detections.parquet (DETECTIONS) and measurements.parquet.

    Returns:
        The summary: level, null, null_n, and measurements by name; of an encoder also its card (see ``Detection``),
        null_scores, with None where nothing was found, and smallest_p_value, the smallest possible one.

    Raises:
        SpecError: the detector says nothing of some, or needs a trigger and there is none.
        DataError: an image cannot be read.
        CheckpointError: the encoder cannot be loaded.
    """
    match detector.level:
        case "sample":
            pool, keys, truth = _training_pool(dataset, overlay, seed, device)
        case "input":
            if trigger is None:
                raise SpecError(f"detector {detector.kind} judges inputs under a trigger, and the attack has none")
            pool, keys, truth = _input_pool(dataset, trigger, source, seed, device)
        case "encoder":
            pool, keys, truth = _input_pool(dataset, None, None, seed, device)
        case _:
            assert_never(detector.level)
    found = detector.detect(pool.pool, encoder, seed, on_progress)
    is_encoder = detector.level == "encoder"
    more: dict[str, Any] = {}
    if is_encoder:
        if (rank := rank_among(float(found.scores[0]), siblings)) is not None:
            null = "clean encoders of the same training under other seeds"
            found = found._replace(p_values=torch.tensor([rank], dtype=torch.float64), null=null, null_n=len(siblings))
        more = {
            "card": dict(found.card),
            "null_scores": [None if math.isnan(score) else score for score in siblings],
            "smallest_p_value": 1 / (found.null_n + 1) if found.p_values is not None else None,
        }
    _check_length(f"detector {detector.kind}", len(found.scores), 1 if is_encoder else len(keys))
    scores = found.scores.double().numpy()
    p_values = None if found.p_values is None else found.p_values.double().numpy()
    if is_encoder:
        compared = _compared(found)
        p_value = None if p_values is None else float(p_values[0])
        measured = measure_encoder(detector.kind, float(scores[0]), p_value, compared)
        keys, truths = pa.array([""]), pa.nulls(1, pa.bool_())
    else:
        scores, p_values = pool.in_order(scores), None if p_values is None else pool.in_order(p_values)
        measured = measure_detection(detector.kind, scores, p_values, truth, detector.level)
        truths = pa.array(truth)
    shown_p = pa.nulls(len(keys), pa.float64()) if p_values is None else pa.array(p_values, from_pandas=True)
    out.mkdir(parents=True, exist_ok=True)
    columns = [keys, pa.array(scores, from_pandas=True), shown_p, truths]
    pq.write_table(pa.table(columns, schema=DETECTIONS), out / "detections.parquet")
    return {"level": detector.level, "null": found.null, "null_n": found.null_n, **more} | _written(measured, out)


def _compared(found: Detection) -> str:
    """A sentence on what an encoder's score is comparable with."""
    n = found.null_n
    null = f"Null: {found.null}" + (f" (n = {n}, so p is at least {1 / (n + 1):.3g})" if n else "")
    named = ("input_range", "normalisation", "divisor")
    told = [f"{name.replace('_', ' ')} {found.card[name]}" for name in named if name in found.card]
    return ". ".join((null, *([f"Card: {'; '.join(told)}"] if told else []))) + "."


class _Shuffled:
    """A pool and the order in which it shows what lies behind."""

    def __init__(self, images: torch.Tensor | Streamed, seed: int, device: str, captions: pa.ChunkedArray | None):
        self._order = stream(seed, "pool").permutation(len(images))
        self.pool = Pool(images, torch.from_numpy(self._order), device, captions)

    def in_order(self, values: np.ndarray) -> np.ndarray:
        """``values`` (N,) of the pool, in the order of what lies behind."""
        placed = np.empty_like(values)
        placed[self._order] = values
        return placed


def _training_pool(
    dataset: Dataset, overlay: Overlay | None, seed: int, device: str
) -> tuple[_Shuffled, pa.Array, np.ndarray]:
    """The samples that an encoder is trained on; their keys; which of them are poisoned."""
    keys = rows_of(dataset, "train", overlay)["key"].combine_chunks()
    poisoned = pa.array([], pa.string())
    if overlay is not None:
        rows = overlay.rows
        poisoned = rows.filter(pc.not_equal(rows["action"], "recode"))["key"].combine_chunks()
    captions = captions_of(dataset, "train", overlay)
    captions = None if captions.null_count == len(captions) else captions
    pool = _Shuffled(Streamed(dataset, "train", overlay), seed, device, captions)
    return pool, keys, pc.is_in(keys, value_set=poisoned).to_numpy(zero_copy_only=False)


def _input_pool(
    dataset: Dataset, trigger: Trigger | None, source: bytes | None, seed: int, device: str
) -> tuple[_Shuffled, pa.Array, np.ndarray]:
    """The test images; each once more under ``trigger``, where there is one; which of them bear it."""
    images = Streamed(dataset, "test")
    keys = rows_of(dataset, "test")["key"].combine_chunks()
    clean = images[torch.arange(len(images))]
    if trigger is None:
        return _Shuffled(clean, seed, device, None), keys, np.zeros(len(keys), np.bool_)
    seeds = [sub_seed(seed, "test_trigger", key) for key in keys.to_pylist()]
    triggered = apply_to_tensor(trigger, clean, seeds, "test", source)
    both = torch.cat([clean, triggered])
    truth = np.repeat([False, True], len(keys))
    return _Shuffled(both, seed, device, None), pa.concat_arrays([keys, keys]), truth


def _check_length(who: str, found: int, expected: int) -> None:
    if found != expected:
        raise SpecError(f"{who} is to say something of each of {expected}, found {found}")


def _written(rows: Iterable[Measurement], out: Path) -> dict[str, Any]:
    table = measurements_table(rows)
    pq.write_table(table, out / "measurements.parquet")
    return {"measurements": dict(zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True))}
