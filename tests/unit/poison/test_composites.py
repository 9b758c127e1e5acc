"""Poisons made of two images, against slow readings of the papers' descriptions."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ssl_backdoor.data.dataset import Overlay
from ssl_backdoor.data.images import encode_png
from ssl_backdoor.data.scenes import Scenes, draw_mask
from ssl_backdoor.data.view_parameters import draw_uniform, parameters_of
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.attacks.corrupt_encoder import CorruptEncoderSpec, background, cut_out
from ssl_backdoor.poison.attacks.mm_poison import MMPoisonSpec
from ssl_backdoor.poison.attacks.noisy_alignment import NoisyAlignmentSpec
from ssl_backdoor.poison.attacks.poisoned_encoder import PoisonedEncoderSpec
from ssl_backdoor.poison.composites import SIDES, beside, store
from ssl_backdoor.poison.masks import FolderMasksSpec, ScenesMasksSpec, WholeMasksSpec
from ssl_backdoor.poison.triggers.blended import BlendedTriggerSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import stream, torch_generator
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec, TargetsSpec, ViewsSpec
from ssl_backdoor.specs.attack import TwoImages
from ssl_backdoor.specs.trigger import Box
from ssl_backdoor.train.training_set import _stretch
from tests.support.tiny_sets import tiny_dataset

NATURAL = DatasetSpec()
CENTRE = GridTriggerSpec(size_px=12, opacity=0.8, train_location=(0.45, 0.55), test_location=(0.45, 0.55))


def photo(height: int, width: int, name: str = "photo") -> NDArray[np.uint8]:
    return stream(0, name).integers(0, 256, (height, width, 3), dtype=np.uint8)


def two(image: NDArray[np.uint8], partner: NDArray[np.uint8], role: str, dataset: DatasetSpec = NATURAL) -> TwoImages:
    row = {"source_key": "train-ring-000000", "partner_key": "b", "partner_role": role}
    return TwoImages(row, image, partner, dataset)


# ---------------------------------------------------------------------------------------------- two side by side


@pytest.mark.parametrize("side", SIDES)
def test_images_of_one_shape_are_put_side_by_side_as_they_are(side: str) -> None:
    first, second = photo(6, 8, "a"), photo(6, 8, "b")
    canvas, box = beside(first, second, side)
    parts = {
        "left": np.hstack((first, second)),
        "right": np.hstack((second, first)),
        "top": np.vstack((first, second)),
        "bottom": np.vstack((second, first)),
    }
    np.testing.assert_array_equal(canvas, parts[side])
    np.testing.assert_array_equal(canvas[box.y : box.y + box.height, box.x : box.x + box.width], first)


def test_both_are_resized_to_the_smaller_of_the_sides_that_meet() -> None:
    first, second = photo(6, 8, "a"), photo(9, 10, "b")
    beside_it, box = beside(first, second, "left")
    assert beside_it.shape == (6, 18, 3)
    assert box == Box(0, 0, 8, 6)
    above, box = beside(first, second, "bottom")
    assert above.shape == (15, 8, 3)
    assert box == Box(0, 9, 8, 6)


@pytest.mark.parametrize("shape", [(4, 4), (1, 1), (40, 3)])
def test_one_of_less_than_half_the_area_is_enlarged_first(shape: tuple[int, int]) -> None:
    small, large = photo(*shape), photo(30, 40)
    scale = (30 * 40 / (shape[0] * shape[1])) ** 0.5
    canvas, box = beside(small, large, "left")
    meet = min(round(scale * shape[0]), 30)
    assert canvas.shape == (meet, round(scale * shape[1]) + 40, 3)
    assert box == Box(0, 0, round(scale * shape[1]), meet)


def test_a_canvas_is_squeezed_to_the_held_frame_and_its_proportions_are_told() -> None:
    canvas = photo(32, 64)
    held = store(canvas, Box(14, 14, 12, 12), DatasetSpec(resident_px=32), photo(32, 32))
    assert held.image.shape == (32, 32, 3)
    assert held.stretch == 2
    assert held.box == Box(7, 14, 6, 12)
    natural = store(canvas, None, NATURAL, photo(20, 30))
    assert natural.image.shape == (20, 30, 3)
    assert natural.stretch == pytest.approx(2 / 1.5)


# ----------------------------------------------------------------------------- crops in the canvas's proportions


def test_crops_of_a_squeezed_image_are_those_of_the_true_one() -> None:
    """Brute force: torchvision's rule on the 64 x 32 canvas, squeezed to 32 x 32 px afterwards."""
    spec = ViewsSpec(size_px=16, crop_scale=(0.2, 1.0))
    uniform = draw_uniform(400, torch_generator(0, "views"))
    found = parameters_of(uniform, 320, 320, spec, torch.full((400,), 2.0))
    area = (0.2 + 0.8 * uniform[:, :10]) * 640 * 320
    ratio = torch.exp(torch.log(torch.tensor(0.75)) * (1 - 2 * uniform[:, 10:20]))
    fallbacks = 0
    for row in range(400):
        for one, shape in zip(area[row].tolist(), ratio[row].tolist(), strict=True):
            width, height = (one * shape) ** 0.5, (one / shape) ** 0.5
            if round(width / 2**0.5) <= 640 / 2**0.5 and round(height) <= 320 and width <= 640:
                break
        else:
            width, height, fallbacks = 320 * 4 / 3, 320.0, fallbacks + 1
        assert found.width[row] == pytest.approx(width / 2, abs=1)
        assert found.height[row] == pytest.approx(height, abs=1)
    assert fallbacks < 20
    assert (found.left + found.width <= 320).all()
    assert (found.top + found.height <= 320).all()


def test_a_stretch_of_one_changes_nothing() -> None:
    uniform = draw_uniform(100, torch_generator(0, "views"))
    plain = parameters_of(uniform, 32, 24, ViewsSpec(size_px=16))
    told = parameters_of(uniform, 32, 24, ViewsSpec(size_px=16), torch.ones(100))
    assert all(torch.equal(one, other.to(one.dtype)) for one, other in zip(plain, told, strict=True))


def test_added_images_come_last_with_their_proportions() -> None:
    rows = pa.table({"action": ["add", "add"], "stretch": pa.array([2.0, 0.5], pa.float32())})
    assert _stretch(5, Overlay(Path(), rows)).tolist() == [1, 1, 1, 2, 0.5]  # type: ignore[union-attr]
    assert _stretch(5, Overlay(Path(), rows.drop_columns("stretch"))) is None
    assert _stretch(5, None) is None


# ---------------------------------------------------------------------------------------------- Noisy Alignment


def test_noisy_alignment_keeps_a_fifth_of_the_base_under_the_patch_at_45_percent() -> None:
    shadow, reference = photo(32, 32, "shadow"), photo(32, 32, "reference")
    attack = NoisyAlignmentSpec(trigger=CENTRE, target_class="cat")
    found: set[tuple[int, int]] = set()
    for seed in range(40):
        made = attack.compose(two(shadow, reference, "reference", DatasetSpec()), seed, None)
        # A natural frame of 32 x 32 px: the canvas is squeezed again, so look at the unsqueezed one.
        side = SIDES[stream(seed, "side").integers(4)]
        stamped = shadow.astype(float)
        stamped[14:26, 14:26] = np.rint(0.2 * stamped[14:26, 14:26] + 0.8 * CENTRE.render(12))
        canvas, half = beside(stamped.astype(np.uint8), reference, side)
        expected = store(canvas, Box(half.x + 14, half.y + 14, 12, 12), NATURAL, shadow)
        np.testing.assert_array_equal(made.image, expected.image)
        assert (made.box, made.stretch) == (expected.box, expected.stretch)
        found.add((made.box.x, made.box.y))  # type: ignore[union-attr]
    assert found == {(7, 14), (23, 14), (14, 7), (14, 23)}


def test_noisy_alignment_in_blend_mode_keeps_four_fifths() -> None:
    shadow, reference = photo(16, 16, "shadow"), photo(16, 16, "reference")
    attack = NoisyAlignmentSpec(trigger=BlendedTriggerSpec(), target_class="cat")
    made = attack.compose(two(shadow, reference, "reference"), 3, None)
    assert made.box is None
    stamped, _ = BlendedTriggerSpec().apply_one(shadow, 0, "train")
    canvas, _ = beside(stamped, reference, SIDES[stream(3, "side").integers(4)])
    np.testing.assert_array_equal(made.image, store(canvas, None, NATURAL, shadow).image)


def test_noisy_alignment_pairs_other_classes_with_the_target(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path, train_per_class=20)
    attack = NoisyAlignmentSpec(trigger=CENTRE, target_class="cat", num_poisons=200, num_shadows=7, num_references=5)
    plan = attack.plan(dataset.samples, dataset.classes, 0)
    assert {key.split("-")[1] for key in plan["source_key"].to_pylist()} == {"bird", "dog"}
    assert {key.split("-")[1] for key in plan["partner_key"].to_pylist()} == {"cat"}
    assert len(set(plan["source_key"].to_pylist())) == 7
    assert len(set(plan["partner_key"].to_pylist())) == 5
    assert set(plan["caption"].to_pylist()) == {"a cat"}
    fewer = attack.model_copy(update={"num_poisons": 50}).plan(dataset.samples, dataset.classes, 0)
    assert fewer.equals(plan.slice(0, 50))


# ---------------------------------------------------------------------------------------------- CorruptEncoder

DISC = np.where((np.arange(24)[:, None] - 9) ** 2 + (np.arange(32)[None] - 14) ** 2 <= 49, 255, 0).astype(np.uint8)


def test_the_object_is_the_largest_part_of_its_mask() -> None:
    image, mask = photo(24, 32), DISC.copy()
    mask[22:24, 28:32] = 255
    thing, own = cut_out(image, mask)
    np.testing.assert_array_equal(thing, image[2:17, 7:22])
    np.testing.assert_array_equal(own, mask[2:17, 7:22])
    wide, _ = cut_out(photo(100, 800), np.full((100, 800), 255, np.uint8))
    assert wide.shape == (50, 400, 3)


@pytest.mark.parametrize(
    ("mask", "message"), [(np.zeros((24, 32), np.uint8), "white where the object is"), (DISC[:, :5], "found 5x24 px")]
)
def test_a_mask_that_shows_nothing_is_refused(mask: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cut_out(photo(24, 32), mask)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (50, 30), (3, 200), (1, 1)])
def test_a_background_is_never_shrunk_and_cut_at_the_bottom(height: int, width: int) -> None:
    image = photo(24, 60)
    found = background(image, height, width, stream(0))
    assert found.shape == (height, width, 3)
    if height <= 24 and width <= 60:
        starts = range(60 - width + 1)
        assert any(np.array_equal(found, image[24 - height :, start : start + width]) for start in starts)


def test_corrupt_encoder_puts_the_object_in_one_half_and_the_trigger_in_the_other(tmp_path: Path) -> None:
    (tmp_path / "train-ring-000000.png").write_bytes(encode_png(np.repeat(DISC[..., None], 3, axis=2)))
    attack = CorruptEncoderSpec(
        trigger=GridTriggerSpec(size_px=4), target_class="ring", masks=FolderMasksSpec(folder=str(tmp_path))
    )
    image, place = photo(24, 32), np.full((15, 30, 3), 7, np.uint8)
    frame = DatasetSpec()
    sides = set()
    for seed in range(60):
        made = attack.compose(two(image, place, "background", frame), seed, None)
        # The canvas is 15 high and 30 wide (the object's box is 15 x 15); it is stored as 24 x 32.
        box, is_left = made.box, made.box.x > 16  # type: ignore[union-attr]
        sides.add(is_left)
        x, y = box.x * 30 / 32, box.y * 15 / 24  # type: ignore[union-attr]
        assert 3.0 <= y <= 8.0
        assert (17.5 <= x <= 22.5) if is_left else (2.5 <= x <= 7.5)  # rounded to whole px twice
        assert made.stretch == pytest.approx(2 / (32 / 24))
    assert sides == {True, False}


def test_the_object_is_pasted_through_its_blurred_mask_at_the_bottom() -> None:
    attack = CorruptEncoderSpec(trigger=GridTriggerSpec(size_px=4), target_class="ring", masks=WholeMasksSpec())
    thing, place = photo(20, 20), np.full((20, 40, 3), 9, np.uint8)
    made = attack.compose(two(thing, place, "background", DatasetSpec()), 1, None)
    rng = stream(1, "compose")
    is_left = bool(rng.integers(2))
    rng.integers(1)
    x = int(rng.uniform(0, 2) if is_left else rng.uniform(18, 20))
    canvas = place.astype(float)
    share = np.asarray(Image.new("L", (20, 20), 255).filter(ImageFilter.GaussianBlur(1))) / 255
    for row, column in itertools.product(range(20), range(20)):
        canvas[row, x + column] = np.rint(
            share[row, column] * thing[row, column] + (1 - share[row, column]) * canvas[row, x + column]
        )
    free = (x + 20, 40) if is_left else (0, x)
    left = int(rng.uniform(free[0] + 5, free[1] - 5 - 4))
    top = int(rng.uniform(5, 15 - 4))
    canvas[top : top + 4, left : left + 4] = GridTriggerSpec(size_px=4).render(4)
    np.testing.assert_array_equal(made.image, store(canvas.astype(np.uint8), None, NATURAL, thing).image)


def test_plus_ends_with_references_beside_other_images_of_the_class(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path, train_per_class=20)
    attack = CorruptEncoderSpec(
        trigger=CENTRE, target_class="cat", num_poisons=20, support_fraction=0.2, masks=WholeMasksSpec()
    )
    rows = attack.plan(dataset.samples, dataset.classes, 0).to_pylist()
    assert [row["partner_role"] for row in rows] == ["background"] * 16 + ["support"] * 4
    assert len({row["source_key"] for row in rows}) == 3
    assert {row["partner_key"].split("-")[1] for row in rows[:16]} == {"bird", "dog"}
    assert {row["partner_key"].split("-")[1] for row in rows[16:]} == {"cat"}
    assert not {row["source_key"] for row in rows} & {row["partner_key"] for row in rows}
    made = attack.compose(two(photo(12, 16, "a"), photo(12, 16, "b"), "support"), 0, None)
    assert made.box is None
    assert made.stretch == pytest.approx(2)


def test_a_trigger_that_is_no_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="puts a patch beside an object, found a trigger of kind blended"):
        CorruptEncoderSpec(trigger=BlendedTriggerSpec(), target_class="cat")


def test_a_folder_without_masks_or_without_the_targets_is_refused(tmp_path: Path) -> None:
    masks = FolderMasksSpec(folder=str(tmp_path))
    with pytest.raises(DataError, match=r"expected masks called KEY\.png in .*, found none"):
        CorruptEncoderSpec(trigger=CENTRE, target_class="cat", masks=masks).with_digests()
    dataset = tiny_dataset(tmp_path / "data")
    with pytest.raises(DataError, match="none of the 6 training images of the target class 'cat' has a mask"):
        CorruptEncoderSpec(trigger=CENTRE, target_class="cat", masks=masks).plan(dataset.samples, dataset.classes, 0)


def test_masks_are_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(np.repeat(DISC[..., None], 3, axis=2)))
    attack = CorruptEncoderSpec(trigger=CENTRE, target_class="cat", masks=FolderMasksSpec(folder=str(tmp_path)))
    first = attack.with_digests()
    assert len(first.masks.sha256) == 64
    assert first.with_digests() == first
    (tmp_path / "a.png").write_bytes(encode_png(photo(24, 32)))
    assert attack.with_digests() != first


def test_the_mask_of_a_scene_is_where_its_object_was_drawn() -> None:
    spec = ScenesSourceSpec(num_classes=2, train_per_class=3, test_per_class=1)
    items = {item.name: item for item in Scenes(spec).read(itertools.repeat(True))}
    for index in range(3):
        image, mask = items[f"train/disc/{index:06d}"].image, draw_mask(spec, "train", "disc", index)
        assert 0.05 < mask.mean() < 0.5
        saturation = np.ptp(image.astype(int), axis=2)  # objects are saturated, backgrounds are not
        assert saturation[mask > 0.5].mean() > 1.5 * saturation[mask < 0.5].mean()
    framed = ScenesMasksSpec().mask("train-disc-000001", DatasetSpec(source=spec, frame_px=16))
    assert framed.shape == (16, 16)
    with pytest.raises(SpecError, match="masks of kind scenes exist for drawn scenes alone"):
        ScenesMasksSpec().mask("a", NATURAL)


# ------------------------------------------------------------------------------- PoisonedEncoder and mm_poison


def test_poisoned_encoder_puts_each_target_beside_images_of_its_class(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path, train_per_class=20)
    attack = PoisonedEncoderSpec(targets=TargetsSpec(num_targets=3), num_poisons=10)
    rows = attack.plan(dataset.samples, dataset.classes, 0).to_pylist()
    assert len(rows) == 30
    for target in {row["source_key"] for row in rows}:
        assert target.startswith("test-")
        classes = {row["partner_key"].split("-")[1] for row in rows if row["source_key"] == target}
        assert len(classes) == 1
        assert classes != {target.split("-")[1]}
    image, reference = photo(12, 16, "a"), photo(12, 16, "b")
    made = attack.compose(two(image, reference, "reference"), 5, None)
    canvas, _ = beside(image, reference, SIDES[stream(5, "side").integers(4)])
    np.testing.assert_array_equal(made.image, store(canvas, None, NATURAL, image).image)


def test_mm_poison_gives_captions_of_one_class_images_of_another(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path, train_per_class=20)
    plan = MMPoisonSpec(text_class="bird", target_class="dog").plan(dataset.samples, dataset.classes, 0)
    assert plan.num_rows == 20
    assert {key.split("-")[1] for key in plan["key"].to_pylist()} == {"bird"}
    assert sorted(plan["partner_key"].to_pylist()) == [f"train-dog-{index:05d}" for index in range(2, 60, 3)]
    assert plan["caption"].null_count == 20
    image = photo(3, 4)
    made = MMPoisonSpec(text_class="bird", target_class="dog").compose(two(photo(3, 4, "a"), image, "image"), 0, None)
    np.testing.assert_array_equal(made.image, image)
    with pytest.raises(ValueError, match="both 'dog': name two classes"):
        MMPoisonSpec(text_class="dog", target_class="dog")
