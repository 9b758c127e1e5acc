"""From a plan to an overlay: the only step of poisoning that touches pixels. Costs O(poisons), not O(dataset)."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ssl_backdoor.data.dataset import Dataset, LazyDataset, lookup_locations
from ssl_backdoor.data.images import UInt8Image, decode, encode_jpeg75, encode_png
from ssl_backdoor.data.shards import ShardWriter
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.plan import training
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.specs import AttackSpec, Box, Codec, TriggerSpec
from ssl_backdoor.specs.attack import Composed, TwoImages
from ssl_backdoor.tables import COMPOSED, OVERLAY, PARTNERS, POISON_PLAN
from ssl_backdoor.threads import num_decode_threads, parallel_map

_NOWHERE = Box(-1, -1, 0, 0)
_SHOWN_PX = 224  # side of the picture of a trigger without a box, where images differ in size
_REPORT_EVERY = 100
AT_ONCE = 4096
"""Rows of a plan whose images are read in one go."""
_MAX_THREADS = 16


class _Encoder(NamedTuple):
    encode: Callable[[UInt8Image], bytes]
    suffix: str


def poison(
    attack: AttackSpec, dataset: Dataset | LazyDataset, out: Path, seed: int, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Plan the attack on ``dataset`` and craft its overlay.

    Writes under ``out``: plan.parquet (POISON_PLAN), overlay.parquet (OVERLAY), overlay/*.tar and, where the attack has
    a trigger, trigger.png (the trigger at the largest size it was stamped; for an image trigger its file's bytes,
    unchanged, so that its digest still holds). Only the planned samples are read, by shard and offset, and memory
    grows with their number alone.

    Returns:
        The summary: num_poisons, num_recoded, target_class, target_label, trigger_pattern (fixed, or fresh where it is
        drawn anew for each image; left out without a trigger), and poison_fraction_of_target (the share of the target's
        training images that was poisoned) and poison_fraction_of_dataset (poisons over clean training images). What
        does not apply is None. Where pairs are added also num_targets (the number of (x', y') in one model; None for a
        backdoor), poisons_per_target, num_captions (distinct ones used) and patch_frac (mean side of the patch over the
        image's shorter side; None without a trigger).

    Raises:
        SpecError: the target class is unknown, the trigger is larger than an image, or there are fewer images than
            poisons or targets.
        DataError: there is nothing to poison, no caption names the target, or an image or the trigger's file cannot
            be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    decisions = attack.plan(dataset.samples, dataset.classes, seed)
    pq.write_table(decisions, out / "plan.parquet")
    overlay, patch_frac = OVERLAY.empty_table(), None
    source = attack.trigger.read() if attack.trigger is not None else None
    if decisions.num_rows:
        overlay, patch_frac = _craft(attack, source, dataset, decisions, out, on_progress)
    if attack.trigger is not None:  # also of an attack on the encoder: it is tested under the trigger
        _write_trigger(attack.trigger, source, overlay, dataset.spec.frame_px, out / "trigger.png")
    pq.write_table(overlay, out / "overlay.parquet")
    return _summary(attack, dataset, decisions) | _additions(attack, decisions, patch_frac)


def _craft(
    attack: AttackSpec,
    source: bytes | None,
    dataset: Dataset | LazyDataset,
    decisions: pa.Table,
    out: Path,
    on_progress: OnProgress,
) -> tuple[pa.Table, float | None]:
    """Alter and encode every planned sample into overlay shards.

    Returns:
        Their OVERLAY rows, in the plan's order, and the mean side of the patch over the image's (None without one).
    """
    encoder = _encoder(attack.codec)
    boxes, places, digests, fractions, stretches = [], [], [], [], []

    def crafted(row: dict[str, Any], *originals: bytes) -> tuple[dict[str, Any], Composed, float, bytes]:
        spec = dataset.spec
        image, *others = (decode(one, spec.max_image_pixels, spec.frame_px) for one in originals)
        made = Composed(image, None)
        if row["action"] != "recode":
            try:
                if attack.composes:
                    made = attack.compose(TwoImages(row, image, others[0], spec), row["sub_seed"], source)
                else:
                    made = Composed(*attack.craft(image, row["sub_seed"], source))
            except SpecError as error:
                raise SpecError(f"image {row['source_key']!r}: {error}") from error
        side_frac = (made.box.width if made.box else 0) / min(made.image.shape[:2])
        return row, made, side_frac, encoder.encode(made.image)

    with ShardWriter(out, "overlay/overlay", dataset.spec.samples_per_shard) as writer:
        planned = _planned(dataset, decisions)
        first = next(planned)
        threads = num_decode_threads(len(first[1]), _MAX_THREADS)
        made = parallel_map(lambda one: crafted(*one), chain([first], planned), threads)
        for done, (row, composed, side_frac, data) in enumerate(made, start=1):
            if composed.box is not None:
                fractions.append(side_frac)
            box = composed.box or _NOWHERE
            stretches.append(composed.stretch)
            meta = {"action": row["action"], "source_key": row["source_key"], "label": row["label"]}
            meta |= {"box": list(box)} | ({"caption": row["caption"]} if row["caption"] is not None else {})
            places.append(writer.write(row["key"], data, encoder.suffix, meta))
            boxes.append(box)
            digests.append(hashlib.sha256(data).hexdigest())
            if done % _REPORT_EVERY == 0 or done == decisions.num_rows:
                on_progress(Progress(done, decisions.num_rows, "images"))
    columns = [*zip(*boxes, strict=True), *zip(*places, strict=True), digests]
    added = [pa.array(values, kind) for values, kind in zip(columns, OVERLAY.types[-8:], strict=True)]
    overlay = pa.table([*decisions.select(POISON_PLAN.names).columns, *added], schema=OVERLAY)
    if attack.composes:
        columns = [*decisions.select(PARTNERS.names).columns, pa.array(stretches, pa.float32())]
        overlay = pa.table([*overlay.columns, *columns], schema=pa.schema([*OVERLAY, *COMPOSED]))
    return overlay, sum(fractions) / len(fractions) if fractions else None


def _planned(dataset: Dataset | LazyDataset, decisions: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Each planned row and its clean image as it was ingested, and its partner's if any, in the plan's order."""
    names = [name for name in ("source_key", "partner_key") if name in decisions.column_names]
    places, start = [lookup_locations(dataset.samples, decisions[name]) for name in names], 0
    for batch in decisions.to_batches(max_chunksize=AT_ONCE):
        here = [of_role.slice(start, batch.num_rows) for of_role in places]
        start += batch.num_rows
        yield from zip(batch.to_pylist(), *map(dataset.read, here), strict=True)


def _encoder(codec: Codec) -> _Encoder:
    match codec:
        case "lossless":
            return _Encoder(encode_png, "png")
        case "jpeg75" | "jpeg75_poisons":
            return _Encoder(encode_jpeg75, "jpg")
        case _:
            assert_never(codec)


def _write_trigger(trigger: TriggerSpec, source: bytes | None, overlay: pa.Table, frame_px: int, file: Path) -> None:
    if source is None:
        side_px = pc.max(overlay["box_width"]).as_py() or frame_px or _SHOWN_PX
        Image.fromarray(trigger.shown(side_px)).save(file)
    else:
        file.write_bytes(source)


def _summary(attack: AttackSpec, dataset: Dataset | LazyDataset, decisions: pa.Table) -> dict[str, Any]:
    num_train = sum(block.num_rows for block in training(dataset.samples, ["label"]))
    num_recoded = pc.sum(pc.equal(decisions["action"], "recode")).as_py() or 0
    num_poisons = decisions.num_rows - num_recoded
    target_class = attack.target_class or None
    target_label = dataset.classes.index(target_class) if target_class in dataset.classes else None
    of_target = None
    if attack.poisons_target_class:
        where = partial(pc.equal, target_label)
        of_target = num_poisons / sum(block.num_rows for block in training(dataset.samples, ["label"], where))
    pattern = {} if attack.trigger is None else {"trigger_pattern": "fresh" if attack.trigger.is_fresh else "fixed"}
    return pattern | {
        "num_poisons": num_poisons,
        "poison_fraction_of_target": of_target,
        "poison_fraction_of_dataset": num_poisons / max(1, num_train),
        "target_class": target_class,
        "target_label": target_label,
        "num_recoded": num_recoded,
    }


def _additions(attack: AttackSpec, decisions: pa.Table, patch_frac: float | None) -> dict[str, Any]:
    """What the summary says beyond that where pairs are added."""
    if not attack.adds_pairs:
        return {}
    return {
        "num_targets": None if attack.targets is None else attack.targets.num_targets,
        "poisons_per_target": attack.poisons_per_target(decisions.num_rows),
        "num_captions": pc.count_distinct(decisions["caption"]).as_py(),
        "patch_frac": patch_frac,
    }
