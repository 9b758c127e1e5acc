"""What is found in data before anything is computed, on small sets whose answers were counted by hand."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from ssl_backdoor.data.inspection import SHEET_IMAGES, THUMBNAIL_PX, compare_with_claim, inspect_data, phash
from ssl_backdoor.data.items import Claim, claim_of
from ssl_backdoor.specs import DatasetSpec
from tests.unit.data.picture_files import picture, write_folder, write_tar

LENIENT = DatasetSpec(max_rejected_frac=1.0)
A, B, C = picture(1), picture(2), picture(3, side=20)


def smooth(seed: int, kind: str = "PNG", side: int = 64, **options) -> bytes:
    """A picture of low frequencies, which survive another encoding."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


def test_duplicates_are_counted_within_and_across_splits(tmp_path):
    files = {
        **{f"train/cat/{name}.png": data for name, data in {"a": A, "again": A, "b": B}.items()},
        **{f"train/dog/{name}.png": data for name, data in {"a": A, "c": C}.items()},
        **{f"test/cat/{name}.png": data for name, data in {"a": A, "x": picture(4), "y": picture(4)}.items()},
        "test/dog/z.png": picture(5),
    }
    found = inspect_data(DatasetSpec(), str(write_folder(tmp_path / "set", files)))
    copies = found.facts["duplicates"]
    assert {name: copies[name] for name in copies if name != "largest"} == {
        "num_within_train": 2,
        "num_within_test": 1,
        "num_test_also_train": 1,
        "num_of_several_classes": 1,
    }
    assert copies["largest"][0] == {
        "num_images": 4,
        "num_captions": 0,
        "names": ["test/cat/a.png", "train/cat/a.png", "train/cat/again.png"],
    }
    assert [one["num_images"] for one in copies["largest"]] == [4, 2]
    assert found.listing.classes == {"cat": (3, 3), "dog": (2, 1)}


def test_sizes_and_formats_are_those_of_the_bytes_and_the_ends_are_named(tmp_path):
    files = {"cat/0.png": A, "cat/1.jpg": picture(7, side=30, kind="PNG"), "dog/2.jpg": picture(8, side=8, kind="JPEG")}
    facts = inspect_data(DatasetSpec(), str(write_folder(tmp_path / "set", files))).facts
    assert facts["formats"] == {"png": 2, "jpg": 1}
    assert facts["sizes"]["smallest"] == {"key": "dog-2", "width": 8, "height": 8}
    assert facts["sizes"]["largest"] == {"key": "cat-1", "width": 30, "height": 30}
    assert (facts["sizes"]["width"]["min"], facts["sizes"]["width"]["median"]) == (8, 12)
    assert facts["sizes"]["most_common"] == {"12 x 12": 1, "30 x 30": 1, "8 x 8": 1}
    assert facts["bytes"]["total"] == sum(map(len, files.values()))


def test_what_does_not_decode_is_rejected_and_what_is_no_image_ignored(tmp_path):
    files = {"cat/0.png": A, "cat/1.png": b"no picture", "dog/0.png": B, "notes.csv": b"x", ".hidden": b"x"}
    found = inspect_data(LENIENT, str(write_folder(tmp_path / "set", files)))
    assert (found.listing.num_rejected, [name for name, _ in found.listing.rejected]) == (1, ["cat/1.png"])
    assert {kind: one.num for kind, one in found.listing.ignored.items()} == {".csv": 1, "hidden": 1}
    assert found.facts["num_images"] == 2


def shard(path, samples) -> str:
    files = {}
    for index, (image, caption, about) in enumerate(samples):
        files[f"{index:04d}.png"] = image
        files[f"{index:04d}.txt"] = caption.encode()
        files[f"{index:04d}.json"] = json.dumps(about).encode()
    return str(write_tar(path, files))


def test_captions_are_counted_whatever_their_language(tmp_path):
    captions = ["a cat", "a cat", "un café", "東京の猫", "x" * 60]
    data = shard(tmp_path / "00000.tar", [(picture(index), text, {}) for index, text in enumerate(captions)])
    facts = inspect_data(LENIENT, data).facts["captions"]
    assert (facts["num_images_with"], facts["num_captions"], facts["num_distinct_of_an_image"]) == (5, 5, 4)
    assert facts["characters"] == {"min": 4.0, "p5": 4.2, "median": 5.0, "p95": 49.4, "max": 60.0}
    assert facts["longest"] == {"key": "00000-0004", "text": "x" * 60}
    assert facts["most_repeated"] == [{"text": "a cat", "count": 2}]


def test_one_image_under_many_captions_is_seen(tmp_path):
    data = shard(tmp_path / "00000.tar", [(A, f"shop number {index}", {}) for index in range(5)] + [(B, "a cat", {})])
    (group,) = inspect_data(LENIENT, data).facts["duplicates"]["largest"]
    assert (group["num_images"], group["num_captions"]) == (5, 5)


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (Claim(hashlib.sha256(smooth(1)).hexdigest(), None), "match"),
        (Claim("0" * 64, None), "not comparable"),
        (Claim("0" * 64, phash(smooth(1, side=256), 10**6)), "perceptually equal"),
        (Claim("0" * 64, phash(smooth(1, "JPEG", quality=30), 10**6)), "perceptually equal"),
        (Claim("0" * 64, phash(smooth(2), 10**6)), "different"),
    ],
)
def test_a_hash_that_came_with_an_image_is_compared(claim, verdict):
    data = smooth(1)
    assert compare_with_claim(claim, data, hashlib.sha256(data).hexdigest(), 10**6) == verdict


@pytest.mark.parametrize(
    ("record", "claim"),
    [
        ({"sha256": "A" * 64, "phash": "00000000000000ff"}, Claim("a" * 64, 255)),
        ({"sha256": "a" * 64, "phash": "ff"}, Claim("a" * 64, None)),
        ({"sha256": "a" * 63}, None),
        ({"sha256": None}, None),
        ({"sha256": ["a" * 64]}, None),
        ({}, None),
    ],
)
def test_what_is_no_hash_claims_nothing(record, claim):
    assert claim_of(record) == claim


def test_hashes_in_a_shards_json_are_told_apart(tmp_path):
    images = [smooth(seed) for seed in range(4)]
    about = [
        {"sha256": hashlib.sha256(images[0]).hexdigest()},
        {"sha256": "1" * 64, "phash": f"{phash(images[1], 10**6):016x}"},
        {"sha256": "2" * 64, "phash": f"{phash(images[0], 10**6):016x}"},
        {"sha256": "3" * 64},
    ]
    samples = [(image, f"picture {index}", one) for index, (image, one) in enumerate(zip(images, about, strict=True))]
    assert inspect_data(LENIENT, shard(tmp_path / "00000.tar", samples)).facts["hashes_in_json"] == {
        "match": 1,
        "perceptually equal": 1,
        "different": 1,
        "not comparable": 1,
        "examples_of_different": ["00000-0002"],
    }


def test_the_sheet_shows_every_class_and_split_in_turn(tmp_path):
    files = {f"train/cat/{index:03d}.png": picture(index) for index in range(60)}
    files |= {f"train/dog/{index}.png": picture(100 + index) for index in range(3)}
    files |= {"test/cat/0.png": picture(200), "test/dog/0.png": picture(201), "train/dog/bad.png": b"no picture"}
    data = str(write_folder(tmp_path / "set", files))
    sheet = inspect_data(LENIENT, data).sheet
    assert len(sheet) == SHEET_IMAGES
    assert {(one.class_name, one.split) for one in sheet[:4]} == {
        (c, s) for c in ("cat", "dog") for s in ("train", "test")
    }
    assert sum(one.class_name == "dog" for one in sheet) == 4
    assert {one.pixels.shape for one in sheet} == {(THUMBNAIL_PX, THUMBNAIL_PX, 3)}
    again = inspect_data(LENIENT, data).sheet
    assert [one.key for one in again] == [one.key for one in sheet]


def test_progress_is_told_and_an_interruption_passes_through(tmp_path):
    data, told = str(write_folder(tmp_path / "set", {f"cat/{index}.png": picture(index) for index in range(3)})), []
    inspect_data(DatasetSpec(), data, on_progress=told.append)
    assert [(one.done, one.total, one.unit) for one in told] == [(3, 3, "images")]

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect_data(DatasetSpec(), data, on_progress=interrupt)
