"""Every built-in trigger against a slow reading of its description, and what all of them must keep."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.triggers.badnets import BadNetsTriggerSpec
from ssl_backdoor.poison.triggers.blended import BlendedTriggerSpec
from ssl_backdoor.poison.triggers.frequency import CtrlTriggerSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.sig import SigTriggerSpec
from ssl_backdoor.poison.triggers.stripes import StripesTriggerSpec
from ssl_backdoor.poison.triggers.text import TextTriggerSpec
from ssl_backdoor.poison.triggers.triangles import TrianglesTriggerSpec
from ssl_backdoor.poison.triggers.unseen import unseen_triggers
from ssl_backdoor.poison.triggers.warp import WaNetTriggerSpec
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs import Trigger, built_in

FIXED = (
    GridTriggerSpec(size_frac=0.3),
    BadNetsTriggerSpec(size_frac=0.3),
    StripesTriggerSpec(size_frac=0.3, fresh=False),
    BlendedTriggerSpec(),
    BlendedTriggerSpec(pattern="noise"),
    BlendedTriggerSpec(pattern="stripes", opacity=0.1),
    SigTriggerSpec(),
    CtrlTriggerSpec(window_frac=1.0),
    WaNetTriggerSpec(strength=2.0),
    TrianglesTriggerSpec(cell_px=5),
    TextTriggerSpec(),
)
FRESH = (
    StripesTriggerSpec(size_frac=0.3),
    BlendedTriggerSpec(pattern="noise", fresh=True),
    BlendedTriggerSpec(pattern="stripes", opacity=0.03, fresh=True),
)
EVERY = (*FIXED, *FRESH)
every = pytest.mark.parametrize("trigger", EVERY, ids=lambda one: one.label)


def photos(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return stream(0, "photos").integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def seeds(count: int) -> list[int]:
    return [sub_seed(index, "place") for index in range(count)]


def levels(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def test_every_trigger_that_comes_with_the_project_is_examined() -> None:
    assert {one.kind for one in EVERY} | {"image"} == {one.model_fields["kind"].default for one in built_in("trigger")}


@every
def test_a_batch_is_its_images_and_none_of_them_changes(trigger: Trigger) -> None:
    images = photos(4, 20, 30)
    before = images.copy()
    stamped, boxes = trigger.apply(images, seeds(4), "train")
    again = trigger.apply(images, seeds(4), "train")
    alone = [trigger.apply_one(one, seed, "train") for one, seed in zip(images, seeds(4), strict=True)]
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(stamped, again.images)
    np.testing.assert_array_equal(stamped, [image for image, _ in alone])
    assert boxes == again.boxes == (tuple(box for _, box in alone) if boxes else None)
    assert stamped.dtype == np.uint8
    assert stamped.flags.owndata
    assert (stamped != images).any(axis=(1, 2, 3)).all()


@every
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (3, 5), (33, 16), (224, 225)])
def test_every_size_of_image_keeps_its_size_or_is_refused_in_one_sentence(
    trigger: Trigger, height: int, width: int
) -> None:
    images = photos(1, height, width)
    if isinstance(trigger, TextTriggerSpec) and (height, width) == (1, 40):  # a word is too high for such a frame
        with pytest.raises(SpecError, match=r"^the text of 16x2 px is larger than the image of 40x1 px .*text$"):
            trigger.apply(images, [0], "test")
        return
    stamped, boxes = trigger.apply(images, [0], "test")
    assert stamped.shape == images.shape
    for box in boxes or ():
        assert 0 <= box.x <= width - box.width
        assert 0 <= box.y <= height - box.height
        outside = np.ones((height, width), bool)
        outside[box.y : box.y + box.height, box.x : box.x + box.width] = False
        np.testing.assert_array_equal(stamped[0][outside], images[0][outside])


@pytest.mark.parametrize("trigger", FIXED, ids=lambda one: one.label)
def test_a_fixed_one_has_unseen_ones_of_its_style_which_all_differ(trigger: Trigger) -> None:
    found = unseen_triggers(trigger, 10, 3)
    assert len({one.shown(64).tobytes() for one in (trigger, *found)}) == 11
    assert {one.anonymous for one in found} == {trigger.anonymous}
    assert not trigger.is_fresh
    grey = np.full((2, 32, 32, 3), 128, np.uint8)
    first, second = trigger.apply(grey, [5, 5], "test").images
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("trigger", FRESH, ids=lambda one: one.label)
def test_a_fresh_one_is_another_on_each_image_and_has_no_unseen_ones(trigger: Trigger) -> None:
    grey = np.full((3, 32, 32, 3), 128, np.uint8)
    stamped = trigger.apply(grey, seeds(3), "test").images
    assert len({np.sort(one.reshape(-1, 3), axis=0).tobytes() + one.tobytes() for one in stamped}) == 3
    assert trigger.is_fresh
    assert "fresh" in trigger.label
    assert unseen_triggers(trigger, 10, 0) == ()


@pytest.mark.parametrize(
    "trigger",
    [BlendedTriggerSpec(), SigTriggerSpec(), CtrlTriggerSpec(window_frac=1.0), TrianglesTriggerSpec()],
    ids=lambda one: one.kind,
)
def test_one_without_a_box_covers_far_more_than_a_patch(trigger: Trigger) -> None:
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    stamped, boxes = trigger.apply(grey, [0], "test")
    assert boxes is None
    assert (stamped != grey).any(axis=3).mean() > 0.4


# ------------------------------------------------------------------------------------ against slow readings


def test_badnets_is_black_with_white_at_every_second_row_and_column() -> None:
    patch = BadNetsTriggerSpec(size_px=16).render(16)
    for row, column in itertools.product(range(16), range(16)):
        assert patch[row, column].tolist() == [255 * (row % 2 == 0 and column % 2 == 0)] * 3
    corners = [BadNetsTriggerSpec(size_px=16).apply_one(photos(1, 224, 224)[0], seed, "test")[1] for seed in seeds(300)]
    assert all(16 <= box.x <= 208 for box in corners if box)


def test_blending_is_a_weighted_mean() -> None:
    image = photos(1, 9, 7)[0]
    pattern = stream(3, "blended").integers(0, 256, (9, 7, 3), dtype=np.uint8)
    trigger = BlendedTriggerSpec(seed=3, pattern="noise", opacity=0.2)
    np.testing.assert_array_equal(trigger.apply_one(image, 0, "test")[0], levels(0.8 * image + 0.2 * pattern))


def test_sig_adds_a_sine_in_levels_to_every_row() -> None:
    image = photos(1, 5, 24)[0]
    expected = image.astype(float)
    for row, column in itertools.product(range(5), range(24)):
        expected[row, column] += 20 * np.sin(2 * np.pi * column * 6 / 24)
    np.testing.assert_array_equal(SigTriggerSpec().apply_one(image, 0, "test")[0], levels(expected))
    grey = np.full((1, 4, 224, 3), 128, np.uint8)
    assert np.ptp(SigTriggerSpec().apply(grey, [0], "test").images) == 40
    assert np.ptp(SigTriggerSpec(amplitude_levels=12).apply(grey, [0], "test").images) == 24


YUV_TO_RGB = np.array([[1, 0, 1.14], [1, -0.396, -0.581], [1, 2.029, 0]])


@pytest.mark.parametrize(("side", "places"), [(32, (15, 31)), (16, (7, 15)), (8, (3, 7))])
def test_ctrl_is_a_change_of_two_coefficients_of_u_and_v(side: int, places: tuple[int, int]) -> None:
    image = photos(1, 2 * side, side)[0]
    yuv = image.astype(float) @ np.linalg.inv(YUV_TO_RGB).T
    for top, channel in itertools.product((0, side), (1, 2)):
        window = dctn(yuv[top : top + side, :, channel], norm="ortho")
        for place in places:
            window[place, place] += 100 * side / 32
        yuv[top : top + side, :, channel] = idctn(window, norm="ortho")
    expected = levels(yuv @ YUV_TO_RGB.T)
    np.testing.assert_array_equal(CtrlTriggerSpec(window_px=side).apply_one(image, 0, "train")[0], expected)
    np.testing.assert_array_equal(CtrlTriggerSpec(window_frac=1.0).apply_one(image, 0, "train")[0], expected)


def test_ctrl_is_as_strong_as_the_paper_s_whatever_the_window() -> None:
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    for side in (16, 32, 64):
        change = CtrlTriggerSpec(window_px=side).apply(grey, [0], "test").images[0].astype(int) - 128
        red, green, blue = (abs(change[..., channel]).max() for channel in range(3))
        assert 12 <= red <= 14  # two waves of 6.25 in U and V: at most 14.25, 12.2 and 25.4
        assert 10 <= green <= 12
        assert 21 <= blue <= 25


def test_a_window_larger_than_the_image_is_refused() -> None:
    with pytest.raises(SpecError, match="the window of 32 px is larger than the image of 16x16 px"):
        CtrlTriggerSpec().apply_one(photos(1, 16, 16)[0], 0, "test")


def cubic(distance: float) -> float:
    """Keys's kernel of a = -0.75."""
    x = abs(distance)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0


def enlarge(control: NDArray[np.floating], height: int, width: int) -> NDArray[np.floating]:
    """Bicubic with both corners aligned, edges repeated: one pixel at a time."""
    rows, columns = control.shape[:2]
    field = np.zeros((height, width, 2))
    for i, j in itertools.product(range(height), range(width)):
        y, x = i * (rows - 1) / (height - 1), j * (columns - 1) / (width - 1)
        for row, column in itertools.product(range(int(y) - 1, int(y) + 3), range(int(x) - 1, int(x) + 3)):
            weight = cubic(y - row) * cubic(x - column)
            field[i, j] += weight * control[min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)]
    return field


def test_wanet_reads_each_pixel_from_where_a_smooth_field_points() -> None:
    height, width, trigger = 12, 9, WaNetTriggerSpec(seed=4, strength=3.0)
    image = photos(1, height, width)[0].astype(float)
    control = stream(4, "wanet").uniform(-1, 1, (4, 4, 2))
    field = enlarge(control / np.mean(np.abs(control)), height, width)
    expected = np.zeros_like(image)
    for i, j in itertools.product(range(height), range(width)):
        x = np.clip(2 * j / (width - 1) - 1 + 3 * field[i, j, 0] / width, -1, 1)
        y = np.clip(2 * i / (height - 1) - 1 + 3 * field[i, j, 1] / height, -1, 1)
        column, row = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
        left, top = min(int(column), width - 2), min(int(row), height - 2)
        across, down = column - left, row - top
        upper = (1 - across) * image[top, left] + across * image[top, left + 1]
        lower = (1 - across) * image[top + 1, left] + across * image[top + 1, left + 1]
        expected[i, j] = (1 - down) * upper + down * lower
    found = trigger.apply_one(image.astype(np.uint8), 0, "test")[0].astype(int)
    assert abs(found - expected).max() <= 0.5 + 1e-6


def test_triangles_are_blended_only_where_there_is_one() -> None:
    image = photos(1, 30, 45)[0]
    expected = image.astype(float)
    for row, column in itertools.product(range(30), range(45)):
        if column % 14 <= row % 14:
            grey = 255 * (0.8 if (row // 14 + column // 14) % 2 else 0.4)
            expected[row, column] = 0.85 * expected[row, column] + 0.15 * grey
    np.testing.assert_array_equal(TrianglesTriggerSpec().apply_one(image, 0, "test")[0], levels(expected))


def test_stripes_are_wholly_on_or_off_in_each_channel_of_a_column() -> None:
    patch = StripesTriggerSpec(size_px=16, fresh=False).render(16)
    assert set(np.unique(patch)) == {0, 255}
    np.testing.assert_array_equal(patch, np.broadcast_to(patch[:1], (16, 16, 3)))
    assert len(np.unique(patch[0], axis=0)) > 2


def test_fresh_stripes_lie_where_fixed_ones_would() -> None:
    images = photos(5, 20, 30)
    boxes = [
        StripesTriggerSpec(size_px=6, fresh=fresh).apply(images, seeds(5), "test").boxes for fresh in (True, False)
    ]
    assert boxes[0] == boxes[1]


def test_text_is_red_ink_in_a_box_of_the_words_shape() -> None:
    grey = np.full((64, 100, 3), 128, np.uint8)
    stamped, box = TextTriggerSpec(width_frac=0.8).apply_one(grey, 3, "test")
    assert box is not None
    assert box.width == 80
    assert 8 <= box.height <= 16
    ink = (stamped != grey).any(axis=2)
    assert 0.2 < ink[box.y : box.y + box.height, box.x : box.x + box.width].mean() < 0.8
    assert (stamped[ink] == [255, 0, 0]).all()
