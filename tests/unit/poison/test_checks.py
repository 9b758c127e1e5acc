"""What is told of a poison before anything is trained on it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.poison.attacks.noisy_alignment import NoisyAlignmentSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.checks import PoisonChecks, _auroc, _covers, check_poison
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.poison.triggers.blended import BlendedTriggerSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import AttackSpec, DatasetSpec, NoAttackSpec, ViewsSpec
from tests.support.tiny_sets import tiny_dataset

GRID = GridTriggerSpec(size_px=6)
VIEWS = ViewsSpec(size_px=16, crop_scale=(0.2, 1.0))


def checked(attack: AttackSpec, dataset: Dataset, out: Path, views: ViewsSpec = VIEWS) -> PoisonChecks | None:
    poison(attack, dataset, out, seed=3)
    return check_poison(attack, dataset, Overlay(out, pq.read_table(out / "overlay.parquet")), views, 0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("base"), train_per_class=30)


def test_a_patch_is_there_in_its_box_and_in_some_of_the_crops(dataset: Dataset, tmp_path: Path) -> None:
    attack = Saha2022TargetedSpec(trigger=GRID, target_class="cat", poison_fraction_of_target=0.5)
    found = checked(attack, dataset, tmp_path)
    assert found is not None
    assert (found.num_found, found.num_planned) == (15, 15)
    assert found.changed_frac == pytest.approx(36 / (24 * 32), abs=0.001)
    assert found.visible_frac is not None
    assert 0.4 < found.visible_frac < 1
    assert found.auroc == {
        "file size": pytest.approx(found.auroc["file size"]),
        "aspect ratio": 0.5,
        "JPEG quality": 0.5,
    }
    whole = checked(attack, dataset, tmp_path / "whole", ViewsSpec(size_px=16, crop_scale=(1.0, 1.0)))
    assert whole is not None
    assert whole.visible_frac == 1
    assert [line.split(":")[0] for line in found.lines()] == [
        "poisons",
        "stamp",
        "stamp",
        "told from clean images by (AUROC, 0.5 tells nothing)",
    ]


def test_psnr_is_that_of_the_pixels_as_they_are_trained_on(tmp_path: Path) -> None:
    grey = tiny_dataset(tmp_path / "data", spec=DatasetSpec(frame_px=16))
    attack = Saha2022TargetedSpec(trigger=BlendedTriggerSpec(opacity=0.1), target_class="cat")
    found = checked(attack, grey, tmp_path / "poison")
    assert found is not None
    assert found.psnr_db is not None
    assert 24 < found.psnr_db < 36
    assert found.changed_frac is not None
    assert found.changed_frac > 0.9


def test_a_stamp_that_nothing_is_left_of_and_a_codec_that_tells_are_named(dataset: Dataset, tmp_path: Path) -> None:
    faint = Saha2022TargetedSpec(trigger=BlendedTriggerSpec(opacity=0.001), target_class="cat")
    found = checked(faint, dataset, tmp_path / "faint")
    assert found is not None
    assert any("no poison differs from its original" in one for one in found.problems())
    coded = Saha2022TargetedSpec(trigger=GRID, target_class="cat", codec="jpeg75_poisons")
    found = checked(coded, dataset, tmp_path / "coded")
    assert found is not None
    assert found.auroc["JPEG quality"] == 1
    assert any("by their JPEG quality alone (AUROC 1.00)" in one for one in found.problems())
    assert any(
        "expected 14 samples in the poison, found 15" in one for one in found._replace(num_planned=14).problems()
    )


def test_of_a_poison_made_of_two_images_the_crops_with_the_triggers_box_count(dataset: Dataset, tmp_path: Path) -> None:
    attack = NoisyAlignmentSpec(trigger=GRID, target_class="cat", num_poisons=40)
    found = checked(attack, dataset, tmp_path)
    assert found is not None
    assert (found.num_found, found.psnr_db, found.changed_frac) == (40, None, None)
    assert found.visible_frac is not None
    assert 0.2 < found.visible_frac < 0.9


def test_nothing_is_told_where_nothing_is_poisoned(dataset: Dataset, tmp_path: Path) -> None:
    assert checked(NoAttackSpec(), dataset, tmp_path) is None


def test_half_of_the_box_has_to_be_inside() -> None:
    assert _covers((0, 0, 10, 10), [6, 2, 8, 4])
    assert not _covers((0, 0, 10, 10), [7, 2, 8, 4])
    assert not _covers((0, 0, 10, 10), [12, 12, 2, 2])


def test_an_area_is_that_of_the_better_direction_with_ties_as_half() -> None:
    few, many = np.array([3.0, 1.0]), np.array([1.0, 2.0, 2.0, 4.0])
    slow = sum((one > other) + 0.5 * (one == other) for one in few for other in many) / 8
    assert _auroc(few, many) == max(slow, 1 - slow)
    assert _auroc(np.zeros(3), np.ones(2)) == 1
