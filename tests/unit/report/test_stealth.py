from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssl_backdoor.data.dataset import Overlay
from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.report.examples import read_examples
from ssl_backdoor.report.stealth import stealth
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec
from tests.support.tiny_sets import tiny_dataset

NONE = (0, 0, 0, 0)


def noise(height: int, width: int, name: str = "image") -> UInt8Image:
    return stream(0, name).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_ssim(a: UInt8Image, b: UInt8Image, side: int) -> float:
    """The paper's formula over each full window of each channel, with unbiased variances."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        for y in range(a.shape[0] - side + 1):
            for x in range(a.shape[1] - side + 1):
                p, q = (m[y : y + side, x : x + side, channel].astype(float).ravel() for m in (a, b))
                cov = np.cov(p, q)
                top = (2 * p.mean() * q.mean() + c1) * (2 * cov[0, 1] + c2)
                values.append(top / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize(("height", "width", "side"), [(12, 9, 7), (5, 9, 5), (6, 8, 5), (3, 4, 3)])
def test_ssim_is_the_papers_and_its_window_fits(height: int, width: int, side: int) -> None:
    original = noise(height, width)
    changed = original.copy()
    changed[:2, :2] = 0
    found = stealth([(original, changed, (0, 0, 2, 2))])
    assert found is not None
    assert found.ssim == pytest.approx(slow_ssim(original, changed, side), abs=1e-6)
    assert found.ssim < 0.99


def test_closed_forms() -> None:
    """One grey level everywhere is 10 log10(255^2); a quarter of the image is white on black."""
    flat = np.full((8, 8, 3), 100, np.uint8)
    stamped = np.zeros((8, 8, 3), np.uint8)
    stamped[:4, :4] = 255
    one = stealth([(flat, flat + 1, (0, 0, 8, 8))])
    both = stealth([(flat, flat + 1, (0, 0, 8, 8)), (np.zeros_like(stamped), stamped, (0, 0, 4, 4))])
    assert one is not None
    assert both is not None
    assert (one.n, one.area_frac, one.num_unchanged) == (1, 1.0, 0)
    assert one.psnr_db == pytest.approx(20 * np.log10(255))
    assert both.psnr_db == pytest.approx((20 * np.log10(255) + 10 * np.log10(4)) / 2)
    assert both.area_frac == pytest.approx((1 + 1 / 4) / 2)


def test_equal_images_have_no_finite_psnr() -> None:
    image = noise(9, 9)
    assert stealth([(image, image, NONE)] * 3) == (3, 1.0, None, 0.0, 3)
    changed = image.copy()
    changed[0, 0] ^= 255
    mixed, alone = stealth([(image, image, NONE), (image, changed, (0, 0, 1, 1))]), stealth([(image, changed, NONE)])
    assert mixed is not None
    assert alone is not None
    assert (mixed.psnr_db, mixed.num_unchanged) == (alone.psnr_db, 1)


def test_what_cannot_be_measured() -> None:
    assert stealth([]) is None
    strip = noise(2, 30)
    found = stealth([(strip, strip, NONE)])
    assert found is not None
    assert found.ssim is None
    with pytest.raises(DataError, match="size of its original, 6 x 4 px, found 4 x 6 px"):
        stealth([(noise(4, 6), noise(6, 4), NONE)])


def test_poisons_are_read_one_at_a_time_and_measured(tmp_path: Path) -> None:
    """A 6 px patch on 24 px covers 1/16; without a codec nothing else changes."""
    dataset = tiny_dataset(tmp_path / "data", spec=DatasetSpec(frame_px=24))
    trigger = GridTriggerSpec(size_px=6)
    attack = Saha2022TargetedSpec(trigger=trigger, target_class="cat", poison_fraction_of_target=1.0)
    poison(attack, dataset, tmp_path / "poison", 0)
    overlay = Overlay(tmp_path / "poison", pq.read_table(tmp_path / "poison" / "overlay.parquet"))
    reader = read_examples(dataset, overlay, "saha2022_targeted", count=4)
    assert isinstance(reader, Iterator)
    examples = list(reader)
    assert len(examples) == 4
    for one in examples:
        x, y, width, height = one.box
        differs = (one.original != one.poisoned).any(axis=2)
        assert differs.any()
        differs[y : y + height, x : x + width] = False
        assert not differs.any()
    found = stealth((one.original, one.poisoned, one.box) for one in examples)
    assert found is not None
    assert (found.n, found.area_frac) == (4, 1 / 16)


def test_a_trigger_without_a_box_covers_no_area() -> None:
    image = noise(8, 8)
    assert stealth([(image, image, None)]) == (1, 1.0, None, 0.0, 1)
