"""From a plan to an overlay: the only step of poisoning that touches pixels. Costs O(poisons), not O(dataset)."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.images import UInt8Image, decode, encode_jpeg75, encode_png, to_frame
from ssl_backdoor.data.shards import ShardWriter, read_bytes
from ssl_backdoor.poison.attacks import plan
from ssl_backdoor.poison.triggers import Box, Stamped, read_source, render, stamp
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import AttackSpec, Codec, NoAttackSpec, Saha2022TargetedSpec, TriggerSpec
from ssl_backdoor.tables import OVERLAY

_NOWHERE = Box(-1, -1, 0, 0)
_REPORT_EVERY = 100


class _Encoder(NamedTuple):
    encode: Callable[[UInt8Image], bytes]
    suffix: str


def poison(
    attack: AttackSpec, dataset: Dataset, out: Path, seed: int, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Plan the attack on ``dataset`` and craft its overlay.

    Writes under ``out``: plan.parquet (POISON_PLAN), overlay.parquet (OVERLAY), overlay/*.tar and trigger.png (the
    trigger at the largest size it was stamped; for an image trigger its file's bytes, unchanged, so that its digest
    still holds). Only the planned samples are read, by shard and offset.

    Returns:
        The summary: num_poisons, num_recoded, target_class, target_label, and poison_fraction_of_target (of the
        target's training images) and poison_fraction_of_dataset (of all training images), both in [0, 1]. What an
        attack without a target lacks is None.

    Raises:
        SpecError: the target class is unknown, or the trigger is larger than an image.
        DataError: there is nothing to poison, or an image or the trigger's file cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    decisions = plan(attack, dataset.samples, dataset.classes, seed)
    pq.write_table(decisions, out / "plan.parquet")
    overlay = OVERLAY.empty_table()
    if not isinstance(attack, NoAttackSpec):
        source = read_source(attack.trigger)
        overlay = _craft(attack.trigger, attack.codec, source, dataset, decisions, out, on_progress)
        _write_trigger(attack.trigger, source, overlay, out / "trigger.png")
    pq.write_table(overlay, out / "overlay.parquet")
    return _summary(attack, dataset, decisions)


def _craft(
    trigger: TriggerSpec,
    codec: Codec,
    source: bytes | None,
    dataset: Dataset,
    decisions: pa.Table,
    out: Path,
    on_progress: OnProgress,
) -> pa.Table:
    """Stamp and encode every planned sample into overlay shards; returns their OVERLAY rows, in the plan's order."""
    encoder = _encoder(codec)
    boxes, places, digests = [], [], []
    with ShardWriter(out, "overlay/overlay", dataset.spec.samples_per_shard) as writer:
        for done, (row, image) in enumerate(_planned(dataset, decisions), start=1):
            stamped = Stamped(image, _NOWHERE)
            if row["action"] == "poison":
                rng = stream(row["sub_seed"], "place")
                stamped = stamp(image, trigger, rng, trigger.train_location, source)
            data = encoder.encode(stamped.image)
            meta = {"action": row["action"], "source_key": row["source_key"], "label": row["label"]}
            places.append(writer.write(row["key"], data, encoder.suffix, meta | {"box": list(stamped.box)}))
            boxes.append(stamped.box)
            digests.append(hashlib.sha256(data).hexdigest())
            if done % _REPORT_EVERY == 0 or done == decisions.num_rows:
                on_progress(Progress(done, decisions.num_rows, "images"))
    columns = [*zip(*boxes, strict=True), *zip(*places, strict=True), digests]
    crafted = [pa.array(values, kind) for values, kind in zip(columns, OVERLAY.types[-8:], strict=True)]
    return pa.table([*decisions.columns, *crafted], schema=OVERLAY)


def _planned(dataset: Dataset, decisions: pa.Table) -> Iterator[tuple[dict[str, Any], UInt8Image]]:
    """Each planned row and its clean image in the stored frame, in the plan's order."""
    samples = dataset.samples.select(["key", "shard", "offset", "size"])
    samples = samples.filter(pc.is_in(samples["key"], value_set=decisions["source_key"].combine_chunks()))
    order = pc.index_in(decisions["source_key"], value_set=samples["key"].combine_chunks())
    for batch in pa.Table.from_arrays(
        [*decisions.columns, *samples.take(order).select(["shard", "offset", "size"]).columns],
        names=[*decisions.column_names, "shard", "offset", "size"],
    ).to_batches(max_chunksize=4096):
        rows = pa.Table.from_batches([batch])
        for row, data in zip(rows.to_pylist(), read_bytes(dataset.folder, rows), strict=True):
            yield row, to_frame(decode(data, dataset.spec.max_image_pixels), dataset.spec.frame_px)


def _encoder(codec: Codec) -> _Encoder:
    match codec:
        case "lossless":
            return _Encoder(encode_png, "png")
        case "jpeg75":
            return _Encoder(encode_jpeg75, "jpg")
        case _:
            assert_never(codec)


def _write_trigger(trigger: TriggerSpec, source: bytes | None, overlay: pa.Table, file: Path) -> None:
    if source is None:
        Image.fromarray(render(trigger, pc.max(overlay["box_width"]).as_py())).save(file)
    else:
        file.write_bytes(source)


def _summary(attack: AttackSpec, dataset: Dataset, decisions: pa.Table) -> dict[str, Any]:
    train = dataset.samples["label"].filter(pc.equal(dataset.samples["split"], "train"))
    num_poisons = pc.sum(pc.equal(decisions["action"], "poison")).as_py() or 0
    target_class = attack.target_class if isinstance(attack, Saha2022TargetedSpec) else None
    target_label = None if target_class is None else dataset.classes.index(target_class)
    of_target = None if target_label is None else num_poisons / pc.sum(pc.equal(train, target_label)).as_py()
    return {
        "num_poisons": num_poisons,
        "poison_fraction_of_target": of_target,
        "poison_fraction_of_dataset": num_poisons / max(1, len(train)),
        "target_class": target_class,
        "target_label": target_label,
        "num_recoded": decisions.num_rows - num_poisons,
    }
