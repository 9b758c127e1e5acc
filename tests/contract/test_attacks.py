"""What every attack of the union must keep. A new attack joins by a line in EXAMPLES."""

import hashlib
import typing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_backdoor.data.dataset import Dataset, LazyDataset
from ssl_backdoor.data.images import decode, encode_jpeg75
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.poison.attacks import num_planned
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.poison.attacks.corrupt_encoder import CorruptEncoderSpec
from ssl_backdoor.poison.attacks.ctrl2023 import Ctrl2023Spec
from ssl_backdoor.poison.attacks.label_consistent import LabelConsistentSpec
from ssl_backdoor.poison.attacks.mm_poison import MMPoisonSpec
from ssl_backdoor.poison.attacks.noisy_alignment import NoisyAlignmentSpec
from ssl_backdoor.poison.attacks.poisoned_encoder import PoisonedEncoderSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec, Saha2022UntargetedSpec
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.poison.masks import FolderMasksSpec
from ssl_backdoor.poison.triggers.blended import BlendedTriggerSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import AttackSpec, NoAttackSpec, TargetsSpec, built_in
from ssl_backdoor.store import Range
from ssl_backdoor.tables import COMPOSED, OVERLAY, PARTNERS, POISON_PLAN
from ssl_backdoor.tampering.badencoder import BadEncoderSpec
from ssl_backdoor.tampering.drupe import DRUPESpec
from tests.support.tiny_sets import tiny_dataset, tiny_masks

TRIGGER = GridTriggerSpec(size_px=6)
NUM_TRAIN, NUM_TARGET = 30, 10
MASKS = FolderMasksSpec(folder=tiny_masks())
SAHA = (
    (Saha2022TargetedSpec(trigger=TRIGGER, target_class="cat", poison_fraction_of_target=0.5), 5),
    (Saha2022TargetedSpec(trigger=TRIGGER, target_class="cat", poison_fraction_of_target=1.0), 10),
    (Saha2022UntargetedSpec(trigger=TRIGGER, poison_fraction_of_dataset=0.1), 3),
)
REPLACING = (
    *SAHA,
    (Ctrl2023Spec(trigger=TRIGGER, target_class="cat", poison_fraction_of_dataset=0.2), 6),
    (LabelConsistentSpec(trigger=TRIGGER, target_class="cat", num_poisons=4), 4),
)
COMPOSING = (
    (NoisyAlignmentSpec(trigger=TRIGGER, target_class="cat", num_poisons=9, num_shadows=3, num_references=50), 9),
    (NoisyAlignmentSpec(trigger=BlendedTriggerSpec(), target_class="cat", num_poisons=4), 4),
    (CorruptEncoderSpec(trigger=TRIGGER, target_class="cat", num_poisons=6, masks=MASKS, support_fraction=0.5), 6),
    (PoisonedEncoderSpec(targets=TargetsSpec(num_targets=2), num_poisons=3), 6),
    (MMPoisonSpec(text_class="bird", target_class="cat"), 10),
)
ADDING = (
    (Carlini2022TargetedSpec(num_poisons=5), 5),
    (Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=3), num_poisons=4, captions="imagenet80"), 12),
    (Carlini2022BackdoorSpec(trigger=TRIGGER, target_class="cat", num_poisons=7), 7),
    (Carlini2022BackdoorSpec(trigger=TRIGGER, target_class="cat", num_poisons=20, captions="imagenet80"), 20),
)
TAMPERING = tuple((kind(trigger=TRIGGER, target_class="cat"), 0) for kind in (BadEncoderSpec, DRUPESpec))
LOSSLESS = ((NoAttackSpec(), 0), *REPLACING, *ADDING, *TAMPERING)
JPEG = tuple((attack.model_copy(update={"codec": "jpeg75"}), count) for attack, count in SAHA)
NOISY = Carlini2022TargetedSpec(num_poisons=100, captions="imagenet80", pixel_noise_levels=2.0, edit_words=True)
EXAMPLES = (*LOSSLESS, *JPEG, *COMPOSING, (NOISY, 100))
attacks = pytest.mark.parametrize(("attack", "count"), EXAMPLES, ids=lambda value: getattr(value, "kind", str(value)))
replacing = pytest.mark.parametrize(("attack", "count"), [*REPLACING, *JPEG], ids=lambda v: getattr(v, "kind", str(v)))
adding = pytest.mark.parametrize(("attack", "count"), ADDING, ids=lambda value: getattr(value, "kind", str(value)))
lossless = pytest.mark.parametrize(("attack", "count"), LOSSLESS, ids=lambda value: getattr(value, "kind", str(value)))
jpeg = pytest.mark.parametrize(("attack", "count"), JPEG, ids=lambda value: getattr(value, "kind", str(value)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("base"), train_per_class=NUM_TARGET)


def crafted(attack: AttackSpec, dataset: Dataset, out: Path) -> list[dict[str, typing.Any]]:
    poison(attack, dataset, out, seed=3)
    overlay = pq.read_table(out / "overlay.parquet")
    assert overlay.schema == pa.schema([*OVERLAY, *(COMPOSED if attack.composes else ())])
    base = {row["key"]: row for row in dataset.samples.to_pylist()}
    rows = overlay.to_pylist()
    originals = pa.Table.from_pylist([base[row["source_key"]] for row in rows], schema=dataset.samples.schema)
    before, after = read_bytes(dataset.folder, originals), read_bytes(out, overlay)
    return [row | {"before": old, "after": new} for row, old, new in zip(rows, before, after, strict=True)]


compositions = pytest.mark.parametrize(("attack", "count"), COMPOSING, ids=lambda v: getattr(v, "kind", str(v)))


@compositions
def test_a_composed_poison_has_the_others_shape_and_tells_its_proportions(
    attack: AttackSpec, count: int, dataset: Dataset, tmp_path: Path
) -> None:
    for row in crafted(attack, dataset, tmp_path):
        image = decode(row["after"], 10**6)
        assert image.shape == (24, 32, 3)
        assert 0.2 < row["stretch"] < 5
        if row["box_width"]:
            assert 0 <= row["box_x"] <= 32 - row["box_width"]
            assert 0 <= row["box_y"] <= 24 - row["box_height"]


def test_every_attack_of_the_union_is_examined() -> None:
    assert {type(attack) for attack, _ in EXAMPLES} == set(built_in("attack"))


@attacks
def test_the_count_is_exact_and_the_plan_pure(attack: AttackSpec, count: int, dataset: Dataset) -> None:
    samples, before = dataset.samples, dataset.samples.to_pylist()
    first, again = (attack.plan(samples, dataset.classes, 3) for _ in range(2))
    assert first.schema == pa.schema([*POISON_PLAN, *(PARTNERS if attack.composes else ())])
    assert first.equals(again)
    assert samples.to_pylist() == before
    assert sum(action in ("poison", "add") for action in first["action"].to_pylist()) == count
    assert first["key"].to_pylist() == sorted(first["key"].to_pylist())
    assert len(set(first["key"].to_pylist())) == first.num_rows
    assert num_planned(attack, dataset.classes, (NUM_TARGET,) * 3, NUM_TRAIN) == first.num_rows


@attacks
def test_the_plan_depends_neither_on_row_order_nor_on_shards(attack: AttackSpec, count: int, dataset: Dataset) -> None:
    expected = attack.plan(dataset.samples, dataset.classes, 3)
    for seed in range(3):
        shuffled = dataset.samples.take(stream(seed, "order").permutation(dataset.samples.num_rows))
        moved = shuffled.set_column(6, "shard", pa.array([f"other-{seed}"] * shuffled.num_rows))
        assert attack.plan(moved, dataset.classes, 3).equals(expected)
    in_pieces = pa.concat_tables([dataset.samples.slice(0, 7), dataset.samples.slice(7)])
    assert attack.plan(in_pieces, dataset.classes, 3).equals(expected)


@attacks
def test_a_dataset_that_is_looked_through_gives_the_same_files(
    attack: AttackSpec, count: int, dataset: Dataset, tmp_path: Path
) -> None:
    pq.write_table(dataset.samples, tmp_path / "samples.parquet", row_group_size=7)

    def read_ranges(ranges: typing.Iterable[Range]) -> typing.Iterator[bytes]:
        return ((dataset.folder / name).read_bytes()[offset : offset + size] for name, offset, size in ranges)

    looked_through = LazyDataset(tmp_path / "samples.parquet", dataset.classes, dataset.spec, read_ranges)
    summaries = [poison(attack, one, tmp_path / name, 3) for name, one in (("a", dataset), ("b", looked_through))]
    assert summaries[0] == summaries[1]
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) >= 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@attacks
def test_another_seed_is_another_choice(attack: AttackSpec, count: int, dataset: Dataset) -> None:
    plans = [attack.plan(dataset.samples, dataset.classes, seed).to_pylist() for seed in range(4)]
    assert all(one != plans[0] for one in plans[1:]) == (count > 0)


@replacing
def test_poisons_are_training_images_of_the_target_alone(attack: AttackSpec, count: int, dataset: Dataset) -> None:
    planned = attack.plan(dataset.samples, dataset.classes, 3)
    prefix = "train-cat-" if attack.target_class else "train-"
    assert all(key.startswith(prefix) for key in planned["source_key"].to_pylist())
    assert planned["key"].equals(planned["source_key"])
    assert planned["caption"].null_count == planned.num_rows


@adding
def test_added_pairs_have_new_keys_their_source_s_label_and_a_caption(
    attack: AttackSpec, count: int, dataset: Dataset
) -> None:
    labels = {row["key"]: row["label"] for row in dataset.samples.to_pylist()}
    for row in attack.plan(dataset.samples, dataset.classes, 3).to_pylist():
        assert row["action"] == "add"
        assert row["key"] not in labels
        assert row["label"] == labels[row["source_key"]]
        assert any(name in row["caption"].split(" ") or f"{name}." in row["caption"] for name in dataset.classes)


@attacks
def test_the_overlay_is_what_its_table_says(attack: AttackSpec, count: int, dataset: Dataset, tmp_path: Path) -> None:
    rows = crafted(attack, dataset, tmp_path)
    plan = pq.read_table(tmp_path / "plan.parquet")
    assert plan.schema == pa.schema([*POISON_PLAN, *(PARTNERS if attack.composes else ())])
    assert [{name: row[name] for name in plan.column_names} for row in rows] == plan.to_pylist()
    for row in rows:
        assert hashlib.sha256(row["after"]).hexdigest() == row["sha256"]
        if attack.composes:
            continue
        is_stamped = row["action"] != "recode" and (attack.trigger is not None)
        assert (row["box_width"], row["box_height"]) == ((6, 6) if is_stamped else (0, 0))
    assert (tmp_path / "trigger.png").exists() == (attack.trigger is not None)


@lossless
def test_lossless_poisons_differ_in_the_box_alone(
    attack: AttackSpec, count: int, dataset: Dataset, tmp_path: Path
) -> None:
    for row in crafted(attack, dataset, tmp_path):
        old, new = (decode(row[name], 10**6) for name in ("before", "after"))
        if attack.trigger is None:
            np.testing.assert_array_equal(new, old)
            continue
        outside = np.ones(old.shape[:2], bool)
        box = np.s_[row["box_y"] : row["box_y"] + 6, row["box_x"] : row["box_x"] + 6]
        outside[box] = False
        np.testing.assert_array_equal(new[outside], old[outside])
        np.testing.assert_array_equal(new[box], TRIGGER.render(6))


@jpeg
def test_with_a_lossy_codec_clean_candidates_go_through_it_too(
    attack: AttackSpec, count: int, dataset: Dataset, tmp_path: Path
) -> None:
    rows = crafted(attack, dataset, tmp_path)
    assert len(rows) == (NUM_TARGET if isinstance(attack, Saha2022TargetedSpec) else NUM_TRAIN)
    clean = [row for row in rows if row["action"] == "recode"]
    assert len(rows) - len(clean) == count
    for row in clean:
        assert row["after"] == encode_jpeg75(decode(row["before"], 10**6))
        assert (row["box_x"], row["box_y"]) == (-1, -1)
    assert all(row["after"].startswith(b"\xff\xd8\xff") for row in rows)


@jpeg
def test_the_authors_codec_re_encodes_the_poisons_alone(
    attack: AttackSpec, count: int, dataset: Dataset, tmp_path: Path
) -> None:
    lossless = crafted(attack.model_copy(update={"codec": "lossless"}), dataset, tmp_path / "lossless")
    rows = crafted(attack.model_copy(update={"codec": "jpeg75_poisons"}), dataset, tmp_path / "jpeg")
    assert [row["action"] for row in rows] == ["poison"] * count
    for row, plain in zip(rows, lossless, strict=True):
        assert row["key"] == plain["key"]
        assert row["after"] == encode_jpeg75(decode(plain["after"], 10**6))


@attacks
def test_crafting_again_gives_the_same_bytes(attack: AttackSpec, count: int, dataset: Dataset, tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        poison(attack, dataset, folder, seed=3)
    first, second = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert first == second
