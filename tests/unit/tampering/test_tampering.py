"""BadEncoder and DRUPE: losses against slow oracles, what may change, and what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.badencoder import Pair
from ssl_backdoor.methods.base import Batch
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import CosineSpec, FitSpec, Resources, SGDSpec, StageContext, TamperAttack
from ssl_backdoor.tampering.badencoder import BadEncoderSpec
from ssl_backdoor.tampering.drupe import DRUPESpec
from ssl_backdoor.tampering.references import CORNER, REFERENCE_VIEWS, PairSpec
from ssl_backdoor.train.checkpoint import NoCheckpoints, load_backbone, save_backbone
from tests.support.backdoors import save_fresh
from tests.support.tiny_defences import save_clip
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import BACKBONE, tiny_images

torch.set_num_threads(1)  # two threads of tiny work wait for each other on a busy machine
STILL = REFERENCE_VIEWS.model_copy(update={"flip_p": 0.0, "jitter_p": 0.0, "grey_p": 0.0})
FIT = FitSpec(epochs=8, batch_size=8, views=REFERENCE_VIEWS, optimizer=SGDSpec(lr=0.02), schedule=CosineSpec())


def spec(kind: type[Any], **changes: Any) -> Any:
    fields: dict[str, Any] = {"target_class": "cat", "reference_views": 3, "num_shadow": 100, "fit": FIT}
    return kind(**(fields | changes))


def small_set(folder: Path) -> Any:
    return tiny_dataset(folder, train_per_class=24, size=(12, 12), separable=True)


def tamper(attack: TamperAttack, dataset: Any, clean: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    return attack.tamper(dataset, clean, StageContext(out, 0, Resources(device="cpu"), NoCheckpoints(), lambda _: None))


def the_objective(attack: Any, num_pairs: int = 1, references: int = 2, per_epoch: int = 4) -> Any:
    clean, tampered = build_backbone(BACKBONE, 1, 5), build_backbone(BACKBONE, 1, 6)
    images = tiny_images()
    pairs = [
        Pair(CORNER.model_copy(update={"seed": number}), None, images[10 * number :][:references])
        for number in range(num_pairs)
    ]
    return attack.objective(clean.eval(), tampered, pairs, 0, per_epoch).train()


def batch_of(images: torch.Tensor, step: int = 0) -> Batch:
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return Batch(((images / 255 - mean) / std,), step)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one @ other) / (one.norm() * other.norm()))


def slow_terms(made: Any, images: torch.Tensor) -> dict[str, Any]:
    """Of each pair, image by image, in loops; the references' views are the references themselves."""
    clean, tampered = made.clean[0], made.backbone

    def see(network: Any, image: np.ndarray) -> torch.Tensor:
        view = batch_of(torch.from_numpy(image.copy())[None]).views[0]
        with torch.no_grad():
            return network(view)[0].double()

    cosines, references, triggered = [], [], []
    for trigger, _, own in made.pairs:
        patch = trigger.render(trigger.side_px(12, 12))
        after = [see(tampered, one.numpy()) for one in own]
        stamped = []
        for one in images:
            pixels = one.numpy().copy()
            pixels[:, -len(patch) :, -len(patch) :] = patch.transpose(2, 0, 1)
            stamped.append(see(tampered, pixels))
        cosines.append([[cosine(one, reference) for reference in after] for one in stamped])
        triggered.append(stamped)
        references.append(after)
    kept = [
        cosine(see(tampered, one.numpy()), see(clean, one.numpy())) for pair in made.pairs for one in pair.references
    ]
    utility = [cosine(see(tampered, one.numpy()), see(clean, one.numpy())) for one in images]
    return {
        "cosines": np.array(cosines),
        "kept": np.mean(kept),
        "utility": np.mean(utility),
        "references": references,
        "triggered": triggered,
        "clean": torch.stack([see(tampered, one.numpy()) for one in images]),
    }


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_badencoder_s_loss_is_that_of_the_paper(num_pairs: int):
    still = FIT.model_copy(update={"views": STILL})
    made = the_objective(spec(BadEncoderSpec, fit=still, reference_weight=0.7, utility_weight=2.0), num_pairs)
    images = tiny_images()[:6]
    slow = slow_terms(made, images)
    expected = -slow["cosines"].mean() - 0.7 * slow["kept"] - 2.0 * slow["utility"]
    found = made.loss(batch_of(images))
    assert found.loss.item() == pytest.approx(expected, abs=1e-5)
    assert float(found.logs["effectiveness"]) == pytest.approx(slow["cosines"].mean(), abs=1e-5)


@pytest.mark.parametrize(("step", "phase"), [(0, "warm-up"), (4, "first"), (8, "then")])
def test_drupe_s_loss_is_that_of_its_phase(step: int, phase: str):
    still = FIT.model_copy(update={"views": STILL})
    made = the_objective(spec(DRUPESpec, fit=still, first_epochs=1, num_references=2, utility_weight=1.5))
    images = tiny_images()[:6]
    slow = slow_terms(made, images)
    (cosines,) = slow["cosines"]
    references, triggered = slow["references"][0], slow["triggered"][0]
    spread = np.std(cosines.mean(0))
    likeness = np.mean([cosine(references[i], references[j]) for i in range(2) for j in range(i, 2)])
    tightness = np.mean([cosine(triggered[i], triggered[j]) for i in range(6) for j in range(6) if i != j])
    directions = F.normalize(torch.randn(50, BACKBONE.width * 4, generator=torch_generator(0, "slices", step)), dim=1)
    ranked = [(torch.stack(list(rows)).float() @ directions.T).sort(0).values for rows in (triggered, slow["clean"])]
    distance = float((ranked[0] - ranked[1]).abs().mean() / slow["clean"].std(0).mean())
    pull = 1.0 if likeness > 0.5 else 0.2 if likeness > 0.4 else 0.0
    kept = -slow["kept"] - 1.5 * slow["utility"]
    effect = -cosines.max(1).mean()
    expected = {
        "warm-up": kept + (0.3 if likeness < 0.2 else 0.5) * likeness,
        "first": effect + kept + 2 * spread + pull * likeness,
        "then": effect
        + kept
        + pull * likeness
        + 0.1 * (spread + tightness)
        + 0.1 * distance
        + (0.5 + 1.5 * (spread > 0.1)) * spread,
    }
    assert made.loss(batch_of(images, step)).loss.item() == pytest.approx(expected[phase], abs=1e-4)


def test_tightness_is_over_distinct_images_not_as_published():
    from ssl_backdoor.methods.losses import mean_pairwise_cosine

    features = torch.randn(5, 3, generator=torch_generator(0, "features"))
    unit = F.normalize(features, dim=1)
    slow = np.mean([float(unit[i] @ unit[j]) for i in range(5) for j in range(5) if i != j])
    similarity = unit @ unit.T
    published = float((similarity - torch.diag_embed(similarity)).mean())  # broadcast to (5, 5, 5)
    assert float(mean_pairwise_cosine(features)) == pytest.approx(slow, abs=1e-6)
    assert published == pytest.approx((1 - 1 / 5) * float(similarity.mean()), abs=1e-6)
    assert abs(published - slow) > 0.05


def test_drupe_s_weights_follow_what_an_epoch_reached():
    made = the_objective(spec(DRUPESpec, adapt_from_epoch=2, num_references=2), per_epoch=2)
    good = torch.tensor([-0.97, -0.95, -0.95, 0.5, 1.0])
    for epoch, found in enumerate((good, good, good * torch.tensor([1, 1, 1, 1.4, 1]), good * 0.5)):
        for step in range(2):
            made.found = found if epoch < 3 else torch.tensor([-0.5, -0.95, -0.95, 0.5, 1.0])
            made.after_step((2 * epoch + step) / (FIT.epochs * 2))
        shrink = 1.25**-1.25
        expected = [(0.1, 0.1), (0.125, 0.125), (0.15625, 0.125 * shrink), (0.15625 * shrink, 0.125 * shrink**2)][epoch]
        assert made.weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_reference_is_not_detached_and_batchnorm_stays_as_it_was():
    made = the_objective(spec(BadEncoderSpec, reference_weight=0.0, utility_weight=0.0))
    before = {name: value.clone() for name, value in made.backbone.state_dict().items()}
    made.loss(batch_of(tiny_images()[:6])).loss.backward()
    frozen = [part for part in made.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    assert frozen
    assert not any(part.training or part.weight.requires_grad or part.bias.requires_grad for part in frozen)
    assert all(torch.equal(value, before[name]) for name, value in made.backbone.state_dict().items())
    with_reference = made.backbone.conv1.weight.grad.clone()
    made.zero_grad()
    seen = made.look(batch_of(tiny_images()[:6]))
    detached = seen._replace(references=tuple(one.detach() for one in seen.references))
    (-torch.stack(detached.to_references()).mean()).backward()
    assert not torch.allclose(with_reference, made.backbone.conv1.weight.grad)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return small_set(folder / "data"), save_fresh(folder / "clean")


@pytest.mark.parametrize("attack", [
    spec(BadEncoderSpec, fit=FIT.model_copy(update={"epochs": 20, "optimizer": SGDSpec(lr=0.04)})),
    spec(
        BadEncoderSpec,
        more_pairs=(PairSpec(target_class="dog", trigger=GridTriggerSpec(seed=3, size_px=4)),),
        min_utility=0.5,
    ),
    spec(DRUPESpec, num_references=2, min_utility=0.5),
], ids=("badencoder", "two pairs", "drupe"))  # fmt: skip
def test_triggered_images_go_to_the_target_and_clean_ones_stay(attack: Any, world: Any, tmp_path: Path):
    dataset, clean = world
    told = tamper(attack, dataset, clean, tmp_path / "out")
    if attack.more_pairs:
        again = tamper(attack, dataset, clean, tmp_path / "again")
        assert told["utility"] == again["utility"]
    assert [one["target"] for one in told["pairs"]] == ["cat", *(one.target_class for one in attack.more_pairs)]
    before, after = load_backbone(clean), load_backbone(tmp_path / "out")
    images = tiny_images()
    assert not torch.equal(after.conv1.weight, before.conv1.weight)
    assert torch.equal(after.bn1.running_mean, before.bn1.running_mean)
    view = batch_of(images).views[0]
    assert float(F.cosine_similarity(after(view), before(view)).mean()) > 0.8
    if attack.kind == "badencoder" and not attack.more_pairs:
        assert told["pairs"][0]["reached"] > 0.6  # of the clean encoder a third
        assert told["utility"] > 0.95
        assert told["reference_utility"] > 0.95


def test_a_text_tower_is_left_as_it_was(tmp_path: Path):
    dataset, clean = small_set(tmp_path / "data"), save_clip(tmp_path / "clean")
    tamper(spec(BadEncoderSpec, min_utility=-1.0), dataset, clean, tmp_path / "out")
    for name in ("text.safetensors", "text.json"):
        assert (tmp_path / "out" / name).read_bytes() == (clean / name).read_bytes()
    assert not torch.equal(*(next(load_backbone(tmp_path / one).parameters()) for one in ("clean", "out")))


def test_a_lost_utility_stops_it_with_the_reason(world: Any, tmp_path: Path):
    dataset, clean = world
    hasty = FIT.model_copy(update={"optimizer": SGDSpec(lr=0.5)})
    attack = spec(BadEncoderSpec, utility_weight=0.0, reference_weight=0.0, fit=hasty)
    with pytest.raises(SpecError, match=r"mean cosine of 0\.\d+, expected at least 0\.95; raise attack\.fit\.epochs"):
        tamper(attack, dataset, clean, tmp_path / "out")


def test_an_encoder_that_does_not_know_the_target_is_refused(tmp_path: Path, world: Any):
    plain = tiny_dataset(tmp_path / "noise", train_per_class=24, size=(12, 12))
    backbone = build_backbone(BACKBONE, 1, 5)
    (tmp_path / "clean").mkdir()
    save_backbone(backbone, 1, tmp_path / "clean")
    with pytest.raises(SpecError, match="the clean encoder does not know enough images of 'cat'"):
        tamper(spec(BadEncoderSpec, num_references=8), plain, tmp_path / "clean", tmp_path / "out")


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"num_shadow": 4}, "one batch of badencoder needs 8 shadow images, found num_shadow 4"),
    ({"fit": FIT.model_copy(update={"bn_groups": 2})}, "set fit.bn_groups to 1"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        spec(BadEncoderSpec, **changes)


def test_the_default_patch_lies_in_the_lower_right_corner_on_a_tenth_of_the_area():
    stamped = CORNER.apply(np.zeros((1, 32, 32, 3), np.uint8), [0], "train")
    assert stamped.boxes is not None
    assert stamped.boxes[0] == (22, 22, 10, 10)
    assert math.isclose(100 / 32**2, 0.098, abs_tol=1e-3)
