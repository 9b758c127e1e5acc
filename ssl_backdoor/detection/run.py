"""Run a filter or a detector: give it a pool that tells nothing, then compare what it says with what is true."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.rows import captions_of, encoded_rows, rows_of
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.defences.trusted import select
from ssl_backdoor.detection.inputs import InputDetector
from ssl_backdoor.detection.measure import (
    UNSEEN_INPUT,
    conformal_p_values,
    measure_detection,
    measure_encoder,
    measure_filter,
    measure_inputs,
    rank_among,
)
from ssl_backdoor.detection.pool import Detection, Pool
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.metrics import Measurement, measurements_table
from ssl_backdoor.poison.triggers.tensors import apply_to_tensor
from ssl_backdoor.poison.triggers.unseen import unseen_triggers
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

    Where some samples are trusted, half of these are references that the filter never sees, and p-values compare with
    their scores; all of them where the filter uses none.

    Writes under ``out``: filtered.parquet (FILTERED, in the order of ``rows_of``) and measurements.parquet.

    Returns:
        The summary: num_samples, num_left_out, num_scored, num_references, card, and measurements by name.

    Raises:
        SpecError: the filter says nothing of some samples, or leaves out all; it uses trusted images, and there are
            none.
        DataError: an image cannot be read.
    """
    pool, keys, is_poison = _training_pool(dataset, overlay, seed, device, defence)
    vouched = pool.pool.vouched
    references = vouched[: len(vouched) - len(pool.pool.trusted)]
    verdicts = defence.judge(pool.pool, encoder, seed, on_progress)
    _check_length(f"filter {defence.kind}", len(verdicts.scores), len(keys))
    scores, left_out = (values.numpy() for values in (verdicts.scores.double(), verdicts.is_left_out))
    if left_out.all():
        raise SpecError(f"the filter {defence.kind} leaves out all {len(keys)} training samples: let it keep some")
    p_values = None
    if len(references):
        p_values = pool.in_order(conformal_p_values(scores, references.numpy(), vouched.numpy()))
    scores, left_out = pool.in_order(scores), pool.in_order(left_out)
    out.mkdir(parents=True, exist_ok=True)
    columns = [keys, pa.array(scores, from_pandas=True), _nullable(p_values, len(keys)), left_out]
    pq.write_table(pa.table(columns, schema=FILTERED), out / "filtered.parquet")
    summary = {
        "num_samples": len(keys),
        "num_left_out": int(left_out.sum()),
        "num_scored": int(np.isfinite(scores).sum()),
        "num_references": len(references),
        "card": dict(defence.card),
    }
    return summary | _written(measure_filter(defence.kind, scores, left_out, p_values, is_poison), out)


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
    num_unseen: int = 0,
) -> dict[str, Any]:
    """Let ``detector`` judge the training samples, inputs under ``trigger``, or the encoder.

    Of inputs an ``InputDetector`` has references: clean test images apart from those that are judged, with which
    p-values compare. With ``num_unseen`` each judged image is seen under one of so many other triggers of the style
    as well, in turn: what is found there is a patch, not this encoder's backdoor.

    ``siblings`` are its scores of clean encoders of the same training under other seeds, not a number where it found
    nothing. Where there are some an encoder's p-value is its rank among them, else the detector's own, if it gives one.

    Writes under ``out``: detections.parquet (DETECTIONS, of inputs with their condition) and measurements.parquet; of
    an encoder in which a trigger was found also trigger.safetensors, its mask and pattern.

    Returns:
        The summary: level, null, null_n, card (see ``Detection``), smallest_p_value, the smallest possible one, and
        measurements by name; of an encoder also null_scores, with None where nothing was found.

    Raises:
        SpecError: the detector says nothing of some, or needs a trigger and there is none.
        DataError: an image cannot be read.
        CheckpointError: the encoder cannot be loaded.
    """
    conditions: np.ndarray | None = None
    match detector.level:
        case "sample":
            pool, keys, truth = _training_pool(dataset, overlay, seed, device)
        case "input":
            if trigger is None:
                raise SpecError(f"detector {detector.kind} judges inputs under a trigger, and the attack has none")
            pool, keys, conditions = _input_pool(detector, dataset, trigger, source, seed, device, num_unseen)
            truth = np.isin(conditions, ["triggered", "unseen_trigger"])
        case "encoder":
            pool, keys, truth = images_of_encoder(dataset, seed, device)
        case _:
            assert_never(detector.level)
    found = detector.detect(pool.pool, encoder, seed, on_progress)
    is_encoder, references = detector.level == "encoder", pool.pool.vouched.numpy()
    _check_length(f"detector {detector.kind}", len(found.scores), 1 if is_encoder else len(keys))
    scores = found.scores.double().numpy()
    more: dict[str, Any] = {}
    if is_encoder:
        more = {"null_scores": [None if math.isnan(score) else score for score in siblings]}
        if (rank := rank_among(float(scores[0]), siblings)) is not None:
            null = "clean encoders of the same training under other seeds"
            found = found._replace(p_values=torch.tensor([rank], dtype=torch.float64), null=null, null_n=len(siblings))
    elif len(references) and found.p_values is None:
        ranks, known = conformal_p_values(scores, references, references), np.isfinite(scores[references]).sum()
        null = "clean test images that are not judged"
        found = found._replace(p_values=torch.from_numpy(ranks), null=null, null_n=int(known))
    p_values = None if found.p_values is None else found.p_values.double().numpy()
    if is_encoder:
        p_value = None if p_values is None else float(p_values[0])
        measured = measure_encoder(detector.kind, float(scores[0]), p_value, _compared(found))
        keys, truths = pa.array([""]), pa.nulls(1, pa.bool_())
    else:
        scores, p_values = pool.in_order(scores), None if p_values is None else pool.in_order(p_values)
        if conditions is None:
            measured = measure_detection(detector.kind, scores, p_values, truth, detector.level)
        else:
            measured = measure_inputs(detector.kind, scores, p_values, conditions, _compared(found))
        truths = pa.array(truth)
    out.mkdir(parents=True, exist_ok=True)
    columns = [keys, pa.array(scores, from_pandas=True), _nullable(p_values, len(keys)), truths]
    table = pa.table(columns, schema=DETECTIONS)
    if conditions is not None:
        table = table.append_column("condition", pa.array(conditions))
    pq.write_table(table, out / "detections.parquet")
    if found.trigger is not None:
        mask, pattern = (part.contiguous() for part in found.trigger)
        save_file({"mask": mask, "pattern": pattern}, out / "trigger.safetensors")
    told = {
        "level": detector.level,
        "null": found.null,
        "null_n": found.null_n,
        "card": dict(found.card),
        "smallest_p_value": 1 / (found.null_n + 1) if found.p_values is not None else None,
    }
    return {**told, **more} | _written(measured, out)


def _compared(found: Detection) -> str:
    """A sentence on what an encoder's score is comparable with."""
    n = found.null_n
    null = f"Null: {found.null}" + (f" (n = {n}, so p is at least {1 / (n + 1):.3g})" if n else "")
    named = ("input_range", "normalisation", "divisor")
    told = [f"{name.replace('_', ' ')} {found.card[name]}" for name in named if name in found.card]
    return ". ".join((null, *([f"Card: {'; '.join(told)}"] if told else []))) + "."


class _Shuffled:
    """A pool and the order in which it shows what lies behind."""

    def __init__(
        self,
        images: torch.Tensor | Streamed,
        seed: int,
        device: str,
        captions: pa.ChunkedArray | None = None,
        files: Callable[[], Iterator[tuple[int, bytes]]] | None = None,
        is_trusted: np.ndarray | None = None,
        *,
        uses_trusted: bool = False,
        classes: Sequence[str] = (),
    ):
        self._order = stream(seed, "pool").permutation(len(images))
        vouched = np.flatnonzero(is_trusted[self._order]) if is_trusted is not None else np.empty(0, np.int64)
        num_references = (len(vouched) + 1) // 2 if uses_trusted else len(vouched)
        vouched = np.concatenate([vouched[::2], vouched[1::2]])  # else references would come first in the pool
        order, rows = torch.from_numpy(self._order), torch.from_numpy(vouched)
        self.pool = Pool(images, order, device, captions, files, rows, num_references, classes)

    def in_order(self, values: np.ndarray) -> np.ndarray:
        """``values`` (N,) of the pool, in the order of what lies behind."""
        placed = np.empty_like(values)
        placed[self._order] = values
        return placed


def _training_pool(
    dataset: Dataset, overlay: Overlay | None, seed: int, device: str, defence: Filter | None = None
) -> tuple[_Shuffled, pa.Array, np.ndarray]:
    """The samples that an encoder is trained on; their keys; which of them are poisoned.

    Raises:
        SpecError: ``defence`` uses trusted images, and there are fewer than four.
    """
    rows = rows_of(dataset, "train", overlay)
    keys = rows["key"].combine_chunks()
    poisoned = pa.array([], pa.string())
    if overlay is not None:
        altered = overlay.rows
        poisoned = altered.filter(pc.not_equal(altered["action"], "recode"))["key"].combine_chunks()
    is_poison = pc.is_in(keys, value_set=poisoned).to_numpy(zero_copy_only=False)
    captions = captions_of(dataset, "train", overlay)
    captions = None if captions.null_count == len(captions) else captions

    def files() -> Iterator[tuple[int, bytes]]:
        return ((one.row, one.data) for one in encoded_rows(dataset, overlay, rows))

    is_trusted, uses_trusted = None, defence is not None and defence.uses_trusted
    if defence is not None and defence.trusted_fraction:
        trusted = select(dataset.samples, defence.trusted_fraction, seed)["key"].combine_chunks()
        is_trusted = pc.is_in(keys, value_set=trusted).to_numpy(zero_copy_only=False) & ~is_poison
    if defence is not None and uses_trusted and (num := 0 if is_trusted is None else int(is_trusted.sum())) < 4:
        raise SpecError(f"the filter {defence.kind} needs 4 trusted images, found {num}: raise its trusted_fraction")
    shown = Streamed(dataset, "train", overlay)
    pool = _Shuffled(shown, seed, device, captions, files, is_trusted, uses_trusted=uses_trusted)
    return pool, keys, is_poison


def _input_pool(
    detector: Detector,
    dataset: Dataset,
    trigger: Trigger,
    source: bytes | None,
    seed: int,
    device: str,
    num_unseen: int,
) -> tuple[_Shuffled, pa.Array, np.ndarray]:
    """Test images, their keys, and the condition of each: reference, clean, triggered or unseen_trigger.

    Raises:
        SpecError: the trigger is larger than the images, or no other pattern of its style is found.
    """
    images, all_keys = Streamed(dataset, "test"), rows_of(dataset, "test")["key"].combine_chunks()
    num_references, num_judged = 0, len(images)
    if isinstance(detector, InputDetector):
        num_references, num_judged = detector.parts(len(images))
    drawn = stream(seed, "inputs").permutation(len(images))[: num_references + num_judged]
    references, judged = np.sort(drawn[:num_references]), np.sort(drawn[num_references:])
    keys = all_keys.take(pa.array(judged))
    clean = images[torch.from_numpy(judged)]
    seeds = [sub_seed(seed, "test_trigger", key) for key in keys.to_pylist()]
    shown = {"clean": clean, "triggered": apply_to_tensor(trigger, clean, seeds, "test", source)}
    others = unseen_triggers(trigger, num_unseen, sub_seed(seed, "inputs"), source)
    if others:
        shown["unseen_trigger"] = clean.clone()
    for number, other in enumerate(others):
        here = slice(number, None, len(others))
        shown["unseen_trigger"][here] = apply_to_tensor(other, clean[here], seeds[here], "test", source)
    everything = torch.cat([images[torch.from_numpy(references)], *shown.values()])
    conditions = np.array(["reference"] * num_references + [name for name in shown for _ in judged])
    all_of = pa.concat_arrays([all_keys.take(pa.array(references)), *[keys] * len(shown)])
    is_reference = conditions == "reference"
    return _Shuffled(everything, seed, device, is_trusted=is_reference, classes=dataset.classes), all_of, conditions


def images_of_encoder(dataset: Dataset, seed: int, device: str) -> tuple[_Shuffled, pa.Array, np.ndarray]:
    """What a detector of encoders sees, its ``pool``: the test images. Their keys, in their own order; no truth."""
    images = Streamed(dataset, "test")
    keys = rows_of(dataset, "test")["key"].combine_chunks()
    return _Shuffled(images[torch.arange(len(images))], seed, device), keys, np.zeros(len(keys), np.bool_)


def _nullable(values: np.ndarray | None, count: int) -> pa.Array:
    return pa.nulls(count, pa.float64()) if values is None else pa.array(values, from_pandas=True)


def _check_length(who: str, found: int, expected: int) -> None:
    if found != expected:
        raise SpecError(f"{who} is to say something of each of {expected}, found {found}")


def _written(rows: Iterable[Measurement], out: Path) -> dict[str, Any]:
    table = measurements_table(rows)
    pq.write_table(table, out / "measurements.parquet")
    names = [
        row["name"] + (f"/{row['condition']}" if row["condition"] == UNSEEN_INPUT else "") for row in table.to_pylist()
    ]
    return {"measurements": dict(zip(names, table["value"].to_pylist(), strict=True))}
