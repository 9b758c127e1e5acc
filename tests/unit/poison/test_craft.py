import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_backdoor.data.images import decode
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec, Saha2022UntargetedSpec
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.progress import Progress
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs import Codec, DatasetSpec, NoAttackSpec, TriggerSpec
from tests.support.tiny_sets import tiny_dataset

TRIGGER = GridTriggerSpec(size_px=6)


def targeted(trigger: TriggerSpec = TRIGGER, fraction: float = 0.5, codec: Codec = "lossless") -> Saha2022TargetedSpec:
    return Saha2022TargetedSpec(trigger=trigger, target_class="cat", poison_fraction_of_target=fraction, codec=codec)


def test_the_summary_names_every_fraction(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base", train_per_class=6)
    assert poison(targeted(codec="jpeg75"), dataset, tmp_path / "a", 0) == {
        "trigger_pattern": "fixed",
        "num_poisons": 3,
        "poison_fraction_of_target": 0.5,
        "poison_fraction_of_dataset": 3 / 18,
        "target_class": "cat",
        "target_label": 1,
        "num_recoded": 3,
    }
    untargeted = Saha2022UntargetedSpec(trigger=TRIGGER, poison_fraction_of_dataset=0.25)
    assert poison(untargeted, dataset, tmp_path / "b", 0) == {
        "trigger_pattern": "fixed",
        "num_poisons": 4,
        "poison_fraction_of_target": None,
        "poison_fraction_of_dataset": 4 / 18,
        "target_class": None,
        "target_label": None,
        "num_recoded": 0,
    }


def test_no_attack_leaves_an_empty_overlay(tmp_path: Path) -> None:
    summary = poison(NoAttackSpec(), tiny_dataset(tmp_path / "base"), tmp_path / "out", 0)
    assert (summary["num_poisons"], summary["poison_fraction_of_dataset"]) == (0, 0.0)
    assert pq.read_table(tmp_path / "out" / "overlay.parquet").num_rows == 0
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_poisons_are_stamped_in_the_stored_frame(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base", spec=DatasetSpec(frame_px=16, samples_per_shard=5))
    poison(targeted(), dataset, tmp_path / "out", 0)
    overlay = pq.read_table(tmp_path / "out" / "overlay.parquet")
    base = {
        row["key"]: data
        for row, data in zip(dataset.samples.to_pylist(), read_bytes(dataset.folder, dataset.samples), strict=True)
    }
    for row, data in zip(overlay.to_pylist(), read_bytes(tmp_path / "out", overlay), strict=True):
        frame = decode(base[row["source_key"]], 10**6, 16)
        expected, box = TRIGGER.apply_one(frame, sub_seed(row["sub_seed"], "place"), "train")
        np.testing.assert_array_equal(decode(data, 10**6), expected)
        assert tuple(row[f"box_{side}"] for side in ("x", "y", "width", "height")) == box


def test_only_the_planned_samples_are_read(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base")
    poison(targeted(fraction=0.01), dataset, tmp_path / "first", 0)
    key = pq.read_table(tmp_path / "first" / "plan.parquet")["key"][0].as_py()
    needed = next(row for row in dataset.samples.to_pylist() if row["key"] == key)
    for shard in set(dataset.samples["shard"].to_pylist()) - {needed["shard"]}:
        (dataset.folder / shard).unlink()
    file = dataset.folder / needed["shard"]
    kept = file.read_bytes()[needed["offset"] : needed["offset"] + needed["size"]]
    file.write_bytes(bytes(needed["offset"]) + kept)
    assert poison(targeted(fraction=0.01), dataset, tmp_path / "second", 0)["num_poisons"] == 1


def test_trigger_png_is_the_drawn_trigger(tmp_path: Path) -> None:
    poison(targeted(), tiny_dataset(tmp_path / "base"), tmp_path / "out", 0)
    with Image.open(tmp_path / "out" / "trigger.png") as image:
        np.testing.assert_array_equal(np.asarray(image), TRIGGER.render(6))


def test_an_image_triggers_bytes_are_kept_as_they_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(stream(1).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "patch.png").write_bytes(buffer.getvalue())
    trigger = ImageTriggerSpec(size_frac=0.25, file=str(tmp_path / "patch.png"))
    poison(targeted(trigger), tiny_dataset(tmp_path / "base"), tmp_path / "out", 0)
    assert (tmp_path / "out" / "trigger.png").read_bytes() == buffer.getvalue()
    overlay = pq.read_table(tmp_path / "out" / "overlay.parquet")
    row, data = overlay.to_pylist()[0], next(read_bytes(tmp_path / "out", overlay))
    box = np.s_[row["box_y"] : row["box_y"] + 6, row["box_x"] : row["box_x"] + 6]
    np.testing.assert_array_equal(decode(data, 10**6)[box], trigger.render(6, buffer.getvalue()))


def test_a_trigger_larger_than_the_images_is_refused(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base")
    with pytest.raises(SpecError, match=r"image 'train-.*25x25 px is larger than the image of 32x24 px"):
        poison(targeted(GridTriggerSpec(size_px=25)), dataset, tmp_path / "out", 0)


def test_a_missing_shard_is_a_data_error(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base")
    for shard in dataset.folder.rglob("*.tar"):
        shard.unlink()
    with pytest.raises(DataError, match="shard"):
        poison(targeted(), dataset, tmp_path / "out", 0)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    heard: list[Progress] = []
    poison(targeted(), tiny_dataset(tmp_path / "base"), tmp_path / "out", 0, heard.append)
    assert heard[-1] == Progress(3, 3, "images")
