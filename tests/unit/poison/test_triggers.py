import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.patch import paste, place
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.poison.triggers.tensors import apply_to_tensor
from ssl_backdoor.poison.triggers.unseen import unseen_triggers
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs.trigger import Box


def grid(**changes: object) -> GridTriggerSpec:
    return GridTriggerSpec.model_validate({"size_px": 6, **changes})


def png(side: int = 80) -> bytes:
    file = io.BytesIO()
    Image.fromarray(stream(1, "png").integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_binarised_grid_is_three_by_three_blocks_of_full_colours() -> None:
    pixels = grid().render(6)
    assert pixels.shape == (6, 6, 3)
    assert pixels.dtype == np.uint8
    assert set(np.unique(pixels)) == {0, 255}
    np.testing.assert_array_equal(pixels, np.kron(pixels[::2, ::2], np.ones((2, 2, 1), np.uint8)))


def test_flat_keeps_the_raw_colours_and_binarised_is_their_threshold() -> None:
    raw = stream(7, "trigger").integers(0, 256, (3, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(grid(style="flat").render(3), raw)
    np.testing.assert_array_equal(grid().render(3), (raw >= 128) * np.uint8(255))


@pytest.mark.parametrize("style", ["binarised", "flat", "smooth"])
@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_every_style_fills_the_exact_size(style: str, size: int) -> None:
    assert grid(style=style, size_px=size).render(size).shape == (size, size, 3)


def test_hard_edges_have_the_grids_colours_only_and_smooth_ones_more() -> None:
    def colours(style: str) -> int:
        return len(np.unique(grid(style=style).render(50).reshape(-1, 3), axis=0))

    assert colours("flat") == 9
    assert colours("smooth") > 100


def test_a_grid_depends_on_its_seed_alone() -> None:
    np.testing.assert_array_equal(grid(opacity=0.5).render(6), grid().render(6))
    assert (grid(seed=8).render(6) != grid().render(6)).any()


def test_the_first_grid_is_pinned() -> None:
    # A change here changes every poisoned set: raise STAGE_VERSION["poison"] and ["evaluate"], then this digest.
    digest = hashlib.sha256(grid().render(6).tobytes()).hexdigest()
    assert digest == "a77c214647e587195a59faf3dae293377d24574b9ac41b1040b791012caf561d"


def test_rendered_pixels_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        grid().render(6)[0, 0] = 1


def test_an_image_trigger_is_resized_bicubically() -> None:
    trigger = ImageTriggerSpec(size_px=50, file="patch.png", sha256=hashlib.sha256(png()).hexdigest())
    with Image.open(io.BytesIO(png())) as image:
        expected = np.asarray(image.resize((50, 50), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(trigger.render(50, png()), expected)


@pytest.mark.parametrize(
    ("source", "sha256", "message"),
    [
        (b"no image", "", "unusable"),
        (png()[:200], "", "unusable"),
        (png(), "0" * 64, "has changed: expected sha256 000"),
        (None, "", "without its file's content"),
    ],
)
def test_an_unusable_image_trigger_is_refused_by_name(source: bytes | None, sha256: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ImageTriggerSpec(size_px=5, file="patch.png", sha256=sha256).render(5, source)
    assert "patch.png" in str(caught.value)


def test_the_source_is_read_from_the_kept_copy_or_from_the_file(tmp_path: Path) -> None:
    trigger = ImageTriggerSpec(size_px=5, file=str(tmp_path / "patch.png"))
    with pytest.raises(DataError, match=r"patch\.png cannot be read"):
        trigger.read()
    (tmp_path / "patch.png").write_bytes(b"1")
    (tmp_path / "kept").write_bytes(b"2")
    assert trigger.read() == b"1"
    assert trigger.read(tmp_path / "kept") == b"2"
    assert grid().read() is None


def test_a_fraction_is_of_the_shorter_side() -> None:
    assert grid(size_px=0, size_frac=0.25).side_px(40, 80) == 10
    assert grid(size_px=0, size_frac=0.001).side_px(40, 80) == 1
    assert grid().side_px(40, 80) == 6


def test_a_trigger_larger_than_the_image_names_both_sizes() -> None:
    image = np.zeros((5, 9, 3), np.uint8)
    with pytest.raises(SpecError, match=r"6x6 px is larger than the image of 9x5 px"):
        grid().apply_one(image, 0, "train")


def test_test_placement_is_the_papers() -> None:
    rng = stream(0, "places")
    boxes = [place(224, 224, 50, (0.10, 0.90), rng) for _ in range(4000)]
    for corners in ([box.x for box in boxes], [box.y for box in boxes]):
        assert (min(corners), max(corners)) == (22, 151)
        assert len(set(corners)) == 130  # every integer


def test_train_placement_is_per_axis_on_the_images_own_size() -> None:
    rng = stream(0, "places")
    boxes = [place(375, 500, 50, (0.25, 0.75), rng) for _ in range(6000)]
    assert (min(b.x for b in boxes), max(b.x for b in boxes)) == (125, 325)
    assert (min(b.y for b in boxes), max(b.y for b in boxes)) == (93, 231)


def test_an_upper_bound_below_the_lower_becomes_the_lower() -> None:
    assert place(60, 60, 40, (0.25, 0.75), stream(0)) == Box(15, 15, 40, 40)


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(0, 1),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    st.integers(0, 2**32),
)
def test_the_box_always_lies_inside(height: int, width: int, part: float, location: list[float], seed: int) -> None:
    size = max(1, round(part * min(height, width)))
    box = place(height, width, size, (location[0], location[1]), stream(seed))
    assert 0 <= box.x <= width - size
    assert 0 <= box.y <= height - size


def test_applying_is_pure_and_changes_the_box_alone() -> None:
    image = stream(0, "image").integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before = image.copy()
    (first, box), (again, _) = (grid().apply_one(image, sub_seed(5, "stamp"), "train") for _ in range(2))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first, again)
    assert box == place(20, 30, 6, (0.25, 0.75), stream(5, "stamp"))
    x, y, width, height = box
    np.testing.assert_array_equal(first[y : y + height, x : x + width], grid().render(6))
    outside = np.ones((20, 30), bool)
    outside[y : y + height, x : x + width] = False
    np.testing.assert_array_equal(first[outside], before[outside])


@pytest.mark.parametrize("trigger", [grid(), grid(opacity=0.3), grid(size_px=0, size_frac=0.4, style="smooth")])
def test_a_batch_is_its_images_one_by_one(trigger: GridTriggerSpec) -> None:
    images = stream(0, "images").integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
    before, seeds = images.copy(), [sub_seed(index, "place") for index in range(5)]
    stamped, boxes = trigger.apply(images, seeds, "test")
    np.testing.assert_array_equal(images, before)
    alone = [trigger.apply_one(image, seed, "test") for image, seed in zip(images, seeds, strict=True)]
    np.testing.assert_array_equal(stamped, [image for image, _ in alone])
    assert boxes == tuple(box for _, box in alone)
    assert len(set(boxes)) > 1


def test_opacity_blends() -> None:
    image, patch = np.full((4, 4, 3), 100, np.uint8), np.full((2, 2, 3), 200, np.uint8)
    before = int(image.sum())
    paste(image, patch, Box(1, 1, 2, 2), 0.25)
    assert (image[1:3, 1:3] == 125).all()
    assert image.sum() == before + 4 * 3 * 25
    paste(image, np.full((2, 2, 3), 255, np.uint8), Box(0, 0, 2, 2), 0.999)
    assert image.max() == 255


def transparent() -> bytes:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, :4, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_transparent_picture_lets_the_image_show_through(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(transparent())
    trigger = ImageTriggerSpec(size_px=8, file=str(tmp_path / "a.png"))
    image = np.full((8, 8, 3), 100, np.uint8)
    opaque, _ = trigger.apply_one(image, 0, "test", transparent())
    known = trigger.with_digest()
    assert known.alpha == "kept"
    seen, box = known.apply_one(image, 0, "test", transparent())
    assert (opaque[:, 4:] == 255).all()
    assert (opaque[:, :4] != 100).any()
    assert (seen[:, :4] == 100).all()
    assert (seen[:, 4:] == 255).all()
    assert box == Box(0, 0, 8, 8)


def test_the_alpha_of_a_picture_without_any_is_not_in_its_key(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    known = ImageTriggerSpec(size_px=8, file=str(tmp_path / "a.png")).with_digest()
    assert known.alpha == "dropped"
    assert known.sha256 == hashlib.sha256(png()).hexdigest()


@pytest.mark.parametrize("trigger", [grid(), grid(opacity=0.3, size_px=0, size_frac=0.4)])
def test_tensors_of_either_type_get_the_same_pixels_as_arrays(trigger: GridTriggerSpec) -> None:
    images = stream(0, "images").integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
    seeds = [sub_seed(index, "place") for index in range(4)]
    expected = trigger.apply(images, seeds, "test").images.transpose(0, 3, 1, 2)
    levels = torch.from_numpy(images).permute(0, 3, 1, 2)
    before = levels.clone()
    np.testing.assert_array_equal(apply_to_tensor(trigger, levels, seeds, "test").numpy(), expected)
    assert torch.equal(levels, before)
    as_float = apply_to_tensor(trigger, levels / 255, seeds, "test")
    assert as_float.dtype == torch.float32
    np.testing.assert_array_equal((as_float * 255).round().numpy(), expected)


# ---------------------------------------------------------------------------------------- triggers never seen


def test_unseen_triggers_are_of_the_style_all_different_and_drawn_for_the_pair_and_seed() -> None:
    own = grid(style="flat", test_location=(0.0, 0.5))
    found = unseen_triggers(own, 10, 3)
    assert found == unseen_triggers(own, 10, 3)
    assert len({one.render(6).tobytes() for one in (own, *found)}) == 11
    assert {one.anonymous for one in found} == {own.anonymous}
    assert found[:4] == unseen_triggers(own, 4, 3)
    assert not set(found) & {*unseen_triggers(own, 10, 4), *unseen_triggers(grid(style="flat", seed=8), 10, 3)}


def test_a_picture_is_set_against_smooth_grids() -> None:
    found = unseen_triggers(ImageTriggerSpec(file="a.png", size_frac=0.25, opacity=0.5), 3, 0, png())
    assert [(one.style, one.cells, one.size_frac, one.opacity) for one in found] == [("smooth", 4, 0.25, 0.5)] * 3


def test_the_triggers_own_pattern_is_drawn_again() -> None:
    one_cell = grid(cells=1)  # one of eight colours
    assert all((one.render(6) != one_cell.render(6)).any() for one in unseen_triggers(one_cell, 100, 0))


def test_a_style_of_a_single_pattern_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GridTriggerSpec, "unseen", lambda self, seed: self)
    with pytest.raises(SpecError, match=r"100 draws .* set evaluation\.unseen_triggers=0"):
        unseen_triggers(grid(), 1, 0)
    monkeypatch.setattr(GridTriggerSpec, "unseen", lambda self, seed: None)
    assert unseen_triggers(grid(), 1, 0) == ()
