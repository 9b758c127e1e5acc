"""What attacks and triggers answer of themselves. Every member of the unions is asked; kinds are compared nowhere."""

import pytest

from ssl_backdoor.identity import canonical_json
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.poison.attacks.corrupt_encoder import CorruptEncoderSpec
from ssl_backdoor.poison.attacks.ctrl2023 import Ctrl2023Spec
from ssl_backdoor.poison.attacks.label_consistent import LabelConsistentSpec
from ssl_backdoor.poison.attacks.mm_poison import MMPoisonSpec
from ssl_backdoor.poison.attacks.noisy_alignment import NoisyAlignmentSpec
from ssl_backdoor.poison.attacks.poisoned_encoder import PoisonedEncoderSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec, Saha2022UntargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.specs import NoAttackSpec, TargetsSpec, built_in, members
from ssl_backdoor.tampering.badencoder import BadEncoderSpec
from ssl_backdoor.tampering.drupe import DRUPESpec

GRID = GridTriggerSpec(seed=3, size_px=4, cells=2, style="flat", opacity=0.5)
PICTURE = ImageTriggerSpec(file="a/b.png", sha256="0" * 64, size_frac=0.2, test_location=(0.0, 1.0))
TARGETED = Saha2022TargetedSpec(trigger=GRID, target_class="cat", poison_fraction_of_target=0.3)
UNTARGETED = Saha2022UntargetedSpec(trigger=PICTURE, poison_fraction_of_dataset=0.1)
PAIRS = Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=4), num_poisons=8)
BACKDOOR = Carlini2022BackdoorSpec(trigger=PICTURE, target_class="cat", num_poisons=50)
ALIGNED = NoisyAlignmentSpec(trigger=GRID, target_class="cat", num_poisons=20)
CORRUPT = CorruptEncoderSpec(trigger=GRID, target_class="cat", num_poisons=20)
ENCODED = PoisonedEncoderSpec(targets=TargetsSpec(num_targets=4), num_poisons=8)
CTRL = Ctrl2023Spec(target_class="cat", poison_fraction_of_dataset=0.05)
CONSISTENT = LabelConsistentSpec(trigger=GRID, target_class="cat", num_poisons=7)
CAPTIONS = MMPoisonSpec(text_class="cat", target_class="dog", poison_fraction_of_text_class=0.5)
NEW = (ALIGNED, CORRUPT, ENCODED, CTRL, CONSISTENT, CAPTIONS)
TAMPERING = tuple(kind(trigger=GRID, target_class="cat") for kind in (BadEncoderSpec, DRUPESpec))
EVERY = (NoAttackSpec(), TARGETED, UNTARGETED, PAIRS, BACKDOOR, *NEW, *TAMPERING)
every = pytest.mark.parametrize("attack", EVERY, ids=lambda attack: attack.kind)


def test_every_attack_is_examined() -> None:
    assert {type(one) for one in EVERY} == set(built_in("attack"))
    known = {one.kind: type(one) for one in EVERY}
    assert known.items() <= members("attack").items()  # an audit's own attack may have been loaded before


@every
def test_constants_are_no_part_of_the_identity(attack) -> None:
    names = ("targets", "trigger", "target_class", "codec", "pixel_noise_levels", "label", "adds_pairs")
    constants = [name for name in names if name not in type(attack).model_fields]
    assert constants
    assert not any(f'"{name}"' in canonical_json(attack) for name in constants)
    for name in constants:
        getattr(attack, name)  # asked of every attack


@pytest.mark.parametrize(
    ("attack", "target", "name", "amount"),
    [
        (NoAttackSpec(), "", "no attack", ""),
        (TARGETED, "cat", "3 / cat", ""),
        (UNTARGETED, "untargeted", "b.png / untargeted", ""),
        (PAIRS, "targets", "4 targets", "8 poisons each"),
        (BACKDOOR, "cat", "b.png / cat", "50 poisons"),
        (ALIGNED, "cat", "3 / cat", "20 poisons"),
        (CORRUPT, "cat", "3 / cat", "20 poisons"),
        (ENCODED, "targets", "4 targets", "8 poisons each"),
        (CTRL, "cat", "CTRL 15-15 31-31 / cat", ""),
        (CONSISTENT, "cat", "3 / cat", "7 poisons"),
        (CAPTIONS, "dog", "cat / dog", ""),
        (TAMPERING[0], "cat", "3 / cat", ""),
    ],
)
def test_names_for_people(attack, target, name, amount) -> None:
    assert attack.pair_label == (target, name)
    assert attack.amount == amount


@pytest.mark.parametrize(
    ("attack", "count"),
    [
        (NoAttackSpec(), 0),
        (TAMPERING[0], 0),
        (TARGETED, 3),
        (UNTARGETED, 10),
        (PAIRS, 32),
        (BACKDOOR, 50),
        (ALIGNED, 20),
        (CORRUPT, 20),
        (ENCODED, 32),
        (CTRL, 5),
        (CONSISTENT, 7),
        (CAPTIONS, 5),
    ],
)
def test_rows_of_the_plan_are_known_from_counts(attack, count) -> None:
    assert attack.num_planned({"cat": 11}.__getitem__, 100) == count


def test_where_a_class_is_recoded_all_its_images_are_planned() -> None:
    recoded = {"codec": "jpeg75"}
    assert TARGETED.model_copy(update=recoded).num_planned({"cat": 11}.__getitem__, 100) == 11
    assert UNTARGETED.model_copy(update=recoded).num_planned({"cat": 11}.__getitem__, 100) == 100


@every
def test_the_largest_is_as_large_as_can_be(attack) -> None:
    largest = attack.largest("dog", 7)
    planned = largest.num_planned({"dog": 11}.__getitem__, 100)
    expected = {"none": 0, "badencoder": 0, "drupe": 0, "ctrl2023": 11, "mm_poison": 11}
    expected |= {"saha2022_targeted": 11, "saha2022_untargeted": 100}
    assert planned == expected.get(attack.kind, 7)
    assert largest.target_class in ("dog", "")
    assert attack == EVERY[EVERY.index(attack)], "a copy was changed"


def test_pairs_that_differ_in_trigger_and_target_alone_are_one_setting() -> None:
    for one in (TARGETED, BACKDOOR):
        other = one.model_copy(update={"trigger": one.trigger.unseen(99), "target_class": "dog"})
        again = other.model_copy(update={"trigger": other.trigger.unseen(5), "target_class": "bird"})
        assert other.any_pair == again.any_pair
    assert BACKDOOR.any_pair != BACKDOOR.model_copy(update={"num_poisons": 49}).any_pair
    assert BACKDOOR.of_clean == BACKDOOR.model_copy(update={"num_poisons": 49}).of_clean
    assert BACKDOOR.of_clean.trigger == PICTURE
    assert PAIRS.of_clean == Carlini2022TargetedSpec(targets=PAIRS.targets)
    assert PAIRS.any_pair == PAIRS


def test_an_unseen_trigger_differs_in_its_pixels_alone() -> None:
    assert GRID.unseen(8) == GRID.model_copy(update={"seed": 8})
    unseen = PICTURE.unseen(8)
    assert unseen == GridTriggerSpec(seed=8, cells=4, style="smooth", size_frac=0.2, test_location=(0.0, 1.0))


def test_the_side_of_a_patch_is_a_share_of_the_frame_where_that_is_known() -> None:
    assert GRID.side_frac(16) == 0.25
    assert GRID.side_frac(0) is None
    assert PICTURE.side_frac(0) == 0.2
