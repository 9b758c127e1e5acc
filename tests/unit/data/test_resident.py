"""Order, replacement by an overlay, framing and misuse of the resident loader."""

import dataclasses
import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torchvision.transforms as v1
from PIL import Image

from ssl_backdoor.data import resident
from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.images import decode, encode_png
from ssl_backdoor.data.resident import load_resident, to_evaluated_frame
from ssl_backdoor.data.rows import captions_of, rows_of
from ssl_backdoor.data.shards import ShardWriter
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.errors import DataError
from ssl_backdoor.progress import Progress
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.tables import OVERLAY, SAMPLES

Pixels = dict[str, np.ndarray]
PHOTOGRAPHS = Path(__file__).parents[3] / "../shared/data/imagenet-sample-250.tar"


def noise(key: str, height: int = 12, width: int = 12) -> np.ndarray:
    return stream(0, key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_dataset(folder: Path, images: Pixels, spec: DatasetSpec | None = None, num_test: int = 0) -> Dataset:
    """Shards of five samples; the last ``num_test`` images are the test split; labels are i % 3."""
    rows = []
    with ShardWriter(folder, "shards/all", samples_per_shard=5) as writer:
        for i, (key, image) in enumerate(images.items()):
            data = encode_png(image)
            location = writer.write(key, data, "png", {"label": i % 3})
            height, width = image.shape[:2]
            row = {"key": key, "split": "train", "label": i % 3, "width": width, "height": height}
            row |= location._asdict() | {"sha256": hashlib.sha256(data).hexdigest()}
            row["split"] = "test" if i >= len(images) - num_test else "train"
            rows.append(row)
    return Dataset(folder, pa.Table.from_pylist(rows, schema=SAMPLES), ("a", "b", "c"), spec or DatasetSpec())


def make_overlay(folder: Path, images: Pixels) -> Overlay:
    rows = []
    with ShardWriter(folder, "overlay/overlay", samples_per_shard=5) as writer:
        for key, image in images.items():
            data = encode_png(image)
            row = {"key": key, "source_key": key, "action": "poison", "label": 0, "sub_seed": 1}
            rows.append(
                row | writer.write(key, data, "png", {})._asdict() | {"sha256": hashlib.sha256(data).hexdigest()}
            )
    return Overlay(folder, pa.Table.from_pylist(rows, schema=OVERLAY))


def hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def images() -> Pixels:
    return {key: noise(key) for key in (f"s{i:03d}" for i in range(200))}


def test_rows_keep_the_order_of_the_table(tmp_path: Path, images: Pixels) -> None:
    heard: list[Progress] = []
    loaded = load_resident(make_dataset(tmp_path, images), "train", on_progress=heard.append)
    assert loaded.keys == tuple(images)
    assert np.array_equal(hwc(loaded.images), np.stack(list(images.values())))
    assert loaded.images.dtype == torch.uint8
    assert loaded.labels.dtype == torch.int64
    assert loaded.labels.tolist() == [i % 3 for i in range(200)]
    assert [progress.done for progress in heard] == sorted(progress.done for progress in heard)
    assert heard[-1] == Progress(200, 200, "images")


def test_a_table_in_another_order_than_the_shards(tmp_path: Path, images: Pixels) -> None:
    dataset = make_dataset(tmp_path, images)
    order = stream(0, "order").permutation(200)
    shuffled = Dataset(tmp_path, dataset.samples.take(pa.array(order)), dataset.classes, dataset.spec)
    loaded = load_resident(shuffled, "train")
    assert loaded.keys == tuple(f"s{i:03d}" for i in order)
    assert np.array_equal(hwc(loaded.images), np.stack([images[key] for key in loaded.keys]))


def test_splits_are_apart(tmp_path: Path, images: Pixels) -> None:
    dataset = make_dataset(tmp_path, images, num_test=30)
    assert load_resident(dataset, "train").keys == tuple(images)[:170]
    test = load_resident(dataset, "test")
    assert test.keys == tuple(images)[170:]
    assert np.array_equal(hwc(test.images), np.stack(list(images.values())[170:]))


def test_overlay_takes_the_place_of_what_it_replaces(tmp_path: Path, images: Pixels) -> None:
    dataset = make_dataset(tmp_path / "base", images, num_test=30)
    replaced = ("s150", "s003", "s000", "s169")  # not in the table's order
    poison = {key: noise("poison" + key) for key in replaced}
    overlay = make_overlay(tmp_path / "poison", poison)
    loaded, clean = load_resident(dataset, "train", overlay), load_resident(dataset, "train")
    assert loaded.keys == clean.keys
    assert torch.equal(loaded.labels, clean.labels)
    assert np.array_equal(hwc(loaded.images), np.stack([(images | poison)[key] for key in loaded.keys]))
    assert int((loaded.images != clean.images).flatten(1).any(1).sum()) == len(replaced)
    assert torch.equal(load_resident(dataset, "test", overlay).images, load_resident(dataset, "test").images)


def test_overlay_may_replace_every_image_or_none(tmp_path: Path) -> None:
    images = {key: noise(key) for key in "abc"}
    dataset = make_dataset(tmp_path / "base", images)
    poison = {key: noise("poison" + key) for key in "cab"}
    loaded = load_resident(dataset, "train", make_overlay(tmp_path / "all", poison))
    assert np.array_equal(hwc(loaded.images), np.stack([poison[key] for key in "abc"]))
    loaded = load_resident(dataset, "train", make_overlay(tmp_path / "none", {}))
    assert np.array_equal(hwc(loaded.images), np.stack([images[key] for key in "abc"]))


@pytest.mark.parametrize("spec", [DatasetSpec(frame_px=10), DatasetSpec(resident_px=10)])
def test_images_of_any_size_are_brought_to_the_spec_s_side(tmp_path: Path, spec: DatasetSpec) -> None:
    images = {"wide": noise("wide", 20, 33), "tall": noise("tall", 31, 14), "small": noise("small", 5, 6)}
    dataset = make_dataset(tmp_path / "base", images, spec)
    overlay = make_overlay(tmp_path / "poison", {"tall": 255 - images["tall"]})
    loaded = load_resident(dataset, "train", overlay)
    held = (images["wide"], 255 - images["tall"], images["small"])
    expected = [decode(encode_png(image), 10_000, 10) for image in held]
    assert loaded.images.shape == (3, 3, 10, 10)
    assert np.array_equal(hwc(loaded.images), np.stack(expected))


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    images = {key: noise(key) for key in ("a", "b")} | {"odd": noise("odd", 12, 20)}
    message = r"'odd' has 20 x 12 px and the first has 12 x 12 px: set dataset\.resident_px or dataset\.frame_px"
    with pytest.raises(DataError, match=message):
        load_resident(make_dataset(tmp_path, images), "train")


# ------------------------------------------------------------------------------------------- evaluated frame


@pytest.mark.parametrize(("height", "width"), [(61, 40), (40, 61), (24, 24), (30, 24), (97, 33), (20, 17)])
@pytest.mark.parametrize(("resize_px", "crop_px"), [(24, 21), (24, 20), (0, 17), (24, 0), (0, 0)])
def test_evaluated_frame_is_torchvisions_on_pil(height: int, width: int, resize_px: int, crop_px: int) -> None:
    image = noise("frame", height, width)
    transforms = [v1.Resize(resize_px)] * (resize_px > 0) + [v1.CenterCrop(crop_px)] * (crop_px > 0)
    expected = np.asarray(v1.Compose(transforms)(Image.fromarray(image)))
    assert np.array_equal(to_evaluated_frame(image, resize_px, crop_px), expected)


@pytest.fixture(scope="module")
def photographs() -> Pixels:
    """Of the 250 where they are there; drawn ones else."""
    found = {"a": noise("a", 40, 61), "b": noise("b", 75, 50), "c": noise("c", 20, 23)}
    if PHOTOGRAPHS.is_file():
        with tarfile.open(PHOTOGRAPHS) as archive:
            files = [one for one in archive if one.isfile() and one.name.lower().endswith((".jpg", ".jpeg"))]
            found |= {one.name: decode(archive.extractfile(one).read(), 10**8) for one in files[::10]}  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize(
    "spec",
    [
        DatasetSpec(),
        DatasetSpec(resident_px=30),
        DatasetSpec(resident_px=30, resident_filter="bilinear"),
    ],
)
def test_a_resized_evaluated_frame_is_torchvisions_of_the_stored_image(
    spec: DatasetSpec, photographs: Pixels, tmp_path: Path
) -> None:
    loaded = load_resident(make_dataset(tmp_path, photographs, spec), "train", resize_px=24, crop_px=20)
    frame = v1.Compose([v1.Resize(24), v1.CenterCrop(20)])
    assert np.array_equal(
        hwc(loaded.images), np.stack([frame(Image.fromarray(image)) for image in photographs.values()])
    )


def test_images_are_held_as_torchvision_resizes_them_where_asked(photographs: Pixels, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, photographs, DatasetSpec(resident_px=30, resident_filter="bilinear"))
    frame = v1.Compose([v1.Resize(30), v1.CenterCrop(30)])
    expected = np.stack([frame(Image.fromarray(image)) for image in photographs.values()])
    assert np.array_equal(hwc(load_resident(dataset, "train").images), expected)
    assert np.array_equal(hwc(Streamed(dataset, "train")[torch.arange(len(photographs))]), expected)
    by_area = dataclasses.replace(dataset, spec=DatasetSpec(resident_px=30))
    held = np.stack([decode(encode_png(image), 10**8, 30) for image in photographs.values()])
    assert np.array_equal(hwc(load_resident(by_area, "train").images), held)
    assert not np.array_equal(held, expected)


def test_sizes_need_only_agree_after_the_evaluated_frame(tmp_path: Path) -> None:
    images = {"a": noise("a", 40, 61), "b": noise("b", 33, 50)}
    loaded = load_resident(make_dataset(tmp_path, images), "train", resize_px=24, crop_px=20)
    assert loaded.images.shape == (2, 3, 20, 20)


# --------------------------------------------------------------------------------------------------- misuse


def test_a_crop_larger_than_the_image_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"a": noise("a")})
    with pytest.raises(DataError, match=r"image 'a': a centre crop of 20 px .* has 12 x 12 px"):
        load_resident(dataset, "train", crop_px=20)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no 'test' images"):
        load_resident(make_dataset(tmp_path, {"a": noise("a")}), "test")


def test_the_pixel_limit_of_the_spec_holds(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"a": noise("a"), "big": noise("big", 30, 30)}, DatasetSpec(max_image_pixels=200))
    with pytest.raises(DataError, match=r"image 'big': 30 x 30 px is over the limit of 200 pixels"):
        load_resident(dataset, "train")


def test_an_altered_overlay_image_is_refused(tmp_path: Path, images: Pixels) -> None:
    dataset = make_dataset(tmp_path / "base", images)
    overlay = make_overlay(tmp_path / "poison", {"s007": noise("poison")})
    other = make_overlay(tmp_path / "other", {"s007": noise("another")})
    swapped = Overlay(other.folder, overlay.rows.drop(["size"]).append_column("size", other.rows["size"]))
    with pytest.raises(DataError, match="'s007' is not the one that was recorded"):
        load_resident(dataset, "train", swapped)


def test_the_overlay_of_another_dataset_is_refused(tmp_path: Path, images: Pixels) -> None:
    dataset = make_dataset(tmp_path / "base", images)
    overlay = make_overlay(tmp_path / "poison", {"s001": noise("poison"), "stranger": noise("poison")})
    with pytest.raises(DataError, match="made from 1 images that the dataset lacks, such as 'stranger'"):
        load_resident(dataset, "train", overlay)


def test_large_files_make_smaller_chunks(tmp_path: Path, images: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "CHUNK_BYTES", 1000)
    heard: list[Progress] = []
    loaded = load_resident(make_dataset(tmp_path, images), "train", on_progress=heard.append)
    assert np.array_equal(hwc(loaded.images), np.stack(list(images.values())))
    assert max(np.diff([0, *(progress.done for progress in heard)])) <= 3


def captioned_overlay(folder: Path) -> tuple[Dataset, Overlay]:
    """s000 is replaced under a new caption, s001 under its own, and two pairs are added, one from the test split."""
    dataset = make_dataset(folder / "base", {f"s{i:03d}": noise(f"s{i:03d}") for i in range(6)}, num_test=2)
    texts = ["zero", "one\nuno", None, "three", "four", "five"]
    dataset = dataclasses.replace(dataset, samples=dataset.samples.set_column(3, "caption", pa.array(texts)))
    keys = ("s000", "s001", "poison-000000", "poison-000001")
    made = make_overlay(folder / "poison", {key: noise(f"new {key}") for key in keys}).rows
    made = made.set_column(1, "source_key", pa.array(["s000", "s001", "s005", "s002"]))
    made = made.set_column(2, "action", pa.array(["poison", "recode", "add", "add"]))
    made = made.set_column(3, "label", pa.array([0, 1, 2, 1], pa.int32()))
    made = made.set_column(5, "caption", pa.array(["nought", None, "a plane", "the plane"]))
    return dataset, Overlay(folder / "poison", made)


@pytest.mark.parametrize("pieces", [1, 3])
def test_added_pairs_come_after_all_others_with_their_own_captions(tmp_path: Path, pieces: int) -> None:
    dataset, overlay = captioned_overlay(tmp_path)
    chunked = pa.concat_tables([dataset.samples.slice(at, 6 // pieces) for at in range(0, 6, 6 // pieces)])
    dataset = dataclasses.replace(dataset, samples=chunked)
    loaded, clean = load_resident(dataset, "train", overlay), load_resident(dataset, "train")
    assert loaded.keys == ("s000", "s001", "s002", "s003", "poison-000000", "poison-000001")
    assert loaded.labels.tolist() == [0, 1, 2, 0, 2, 1]
    captions = captions_of(dataset, "train", overlay).to_pylist()
    assert captions == ["nought", "one\nuno", None, "three", "a plane", "the plane"]
    pictures = ["new s000", "new s001", "s002", "s003", "new poison-000000", "new poison-000001"]
    np.testing.assert_array_equal(hwc(loaded.images), np.stack([noise(name) for name in pictures]))
    assert captions_of(dataset, "train").to_pylist() == ["zero", "one\nuno", None, "three"]
    assert torch.equal(clean.images[2:], loaded.images[2:4])


def test_nothing_is_added_to_the_test_split(tmp_path: Path) -> None:
    dataset, overlay = captioned_overlay(tmp_path)
    loaded, clean = load_resident(dataset, "test", overlay), load_resident(dataset, "test")
    assert loaded.keys == clean.keys == ("s004", "s005")
    assert torch.equal(loaded.images, clean.images)
    assert captions_of(dataset, "test", overlay).to_pylist() == ["four", "five"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_are_had_without_pixels(tmp_path: Path, split: str) -> None:
    dataset, overlay = captioned_overlay(tmp_path)
    expected = [(which, rows_of(dataset, split, which)["caption"].to_pylist()) for which in (None, overlay)]
    for path in tmp_path.rglob("*.tar"):
        path.unlink()
    for which, captions in expected:
        assert captions_of(dataset, split, which).to_pylist() == captions
        rows = rows_of(dataset, split, which)
        assert rows["caption"].to_pylist() == captions
        assert [row["sha256"] is not None for row in rows.to_pylist()] == rows["in_overlay"].to_pylist()


def test_an_altered_added_image_is_refused(tmp_path: Path) -> None:
    dataset, overlay = captioned_overlay(tmp_path)
    digests = overlay.rows["sha256"].to_pylist()
    digests[3] = digests[2]
    altered = overlay.rows.set_column(overlay.rows.column_names.index("sha256"), "sha256", pa.array(digests))
    with pytest.raises(DataError, match="'poison-000001' is not the one that was recorded"):
        load_resident(dataset, "train", Overlay(overlay.folder, altered))
