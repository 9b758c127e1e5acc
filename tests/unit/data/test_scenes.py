import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.items import Item
from ssl_backdoor.data.scenes import SHAPES, Scenes
from ssl_backdoor.specs import ScenesSourceSpec


def everything() -> Iterator[bool]:
    return itertools.repeat(True)


def drawn(**fields: object) -> list[Item]:
    return list(Scenes(ScenesSourceSpec(**fields)).read(everything()))


def pixels(item: Item) -> UInt8Image:
    assert isinstance(item.image, np.ndarray)
    return item.image


def test_counts_classes_and_names() -> None:
    items = drawn(num_classes=10, train_per_class=3, test_per_class=2, side_px=16)
    listed = list(Scenes(ScenesSourceSpec(num_classes=10, train_per_class=3, test_per_class=2)).listing())
    assert [(item.name, item.split, item.class_name) for item in items] == [item[:3] for item in listed]
    assert [item.name for item in items] == sorted({item.name for item in items})
    assert {item.class_name for item in items} == set(SHAPES)
    assert len([item for item in items if item.split == "train"]) == 30
    assert all(pixels(item).shape == (16, 16, 3) and pixels(item).dtype == np.uint8 for item in items)


def test_a_scene_depends_on_its_seed_and_name_alone() -> None:
    few = drawn(num_classes=2, train_per_class=3, test_per_class=0, side_px=24)
    many = {item.name: item for item in drawn(num_classes=4, train_per_class=150, test_per_class=1, side_px=24)}
    for item in few:
        assert np.array_equal(pixels(item), pixels(many[item.name]))
        assert item.caption == many[item.name].caption
    other = drawn(num_classes=2, train_per_class=3, test_per_class=0, side_px=24, seed=1)
    assert not np.array_equal(pixels(few[0]), pixels(other[0]))


def test_only_the_wanted_scenes_are_drawn() -> None:
    spec = ScenesSourceSpec(num_classes=3, train_per_class=5, test_per_class=5, side_px=16)
    wanted = [index % 4 == 1 for index in range(30)]
    chosen = list(Scenes(spec).read(iter(wanted)))
    whole = list(itertools.compress(Scenes(spec).read(everything()), wanted))
    assert [item.name for item in chosen] == [item.name for item in whole]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(chosen, whole, strict=True))


def test_captions_name_the_object_and_read_as_english() -> None:
    items = drawn(num_classes=10, train_per_class=60, test_per_class=0, side_px=16)
    captions = [item.caption or "" for item in items]
    assert all(str(item.class_name) in caption for item, caption in zip(items, captions, strict=True))
    assert not any(f" a {vowel}" in f" {caption}" for caption in captions for vowel in "aeiou")
    assert any(" an orange" in caption for caption in captions)
    assert len(set(captions)) > 400


def mean_object_colour(item: Item) -> np.ndarray:
    side = pixels(item).shape[0]
    middle = slice(side // 2 - side // 8, side // 2 + side // 8)
    return pixels(item)[middle, middle].reshape(-1, 3).mean(0)


@pytest.mark.parametrize("hue_lean", [0.0, 1.0])
def test_hues_lean_with_the_class_as_asked(hue_lean: float) -> None:
    """Discs are red and triangles green when all lean; when none does, no channel stands out."""
    items = drawn(num_classes=3, train_per_class=150, test_per_class=0, hue_lean=hue_lean, side_px=32)
    colours = {
        name: np.mean([mean_object_colour(item) for item in items if item.class_name == name], axis=0)
        for name in ("disc", "triangle")
    }
    redness = colours["disc"][0] - colours["disc"][1]
    greenness = colours["triangle"][1] - colours["triangle"][0]
    if hue_lean:
        assert min(redness, greenness) > 40
    else:
        assert max(abs(redness), abs(greenness)) < 30


def test_the_background_texture_leans_with_the_class() -> None:
    """Of a cross's picture, more lies near its 8 cycles than of a disc's, whose texture has 2."""

    def share_near_8_cycles(item: Item) -> float:
        grey = pixels(item).mean(2)
        power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        y, x = np.meshgrid(np.fft.fftfreq(64, 1 / 64), np.fft.fftfreq(64, 1 / 64), indexing="ij")
        near = abs(np.hypot(x, y) - 8) < 1.5
        return float(power[near].sum() / power.sum())

    items = drawn(num_classes=4, train_per_class=60, test_per_class=0)
    shares = {
        name: np.mean([share_near_8_cycles(item) for item in items if item.class_name == name])
        for name in ("disc", "cross")
    }
    assert shares["cross"] > 2 * shares["disc"]
