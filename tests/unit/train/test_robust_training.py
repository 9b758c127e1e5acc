"""Training-time defences on views: mixed queries, crops near each other, more blur and luminance."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flows.recipes import clip, small, ssl
from ssl_backdoor.data.localized import localize
from ssl_backdoor.data.view_parameters import draw_uniform, parameters_of
from ssl_backdoor.defences.blur_luminance import BlurLuminanceSpec, either
from ssl_backdoor.defences.i_cutmix import ICutMixSpec
from ssl_backdoor.defences.localized_cropping import LocalizedCroppingSpec
from ssl_backdoor.methods.base import Batch, Mix, SingleProcess
from ssl_backdoor.methods.losses import info_nce
from ssl_backdoor.methods.msf import mean_shift, nearest
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import RunSpec, TrainSpec, ViewsSpec
from ssl_backdoor.train.batches import make_batches
from ssl_backdoor.train.cutmix import box_of, cut_mix
from tests.support.tiny_training import BATCH, METHODS, objective, random_batch, tiny_images, train_spec

torch.set_num_threads(1)
CPU = torch.device("cpu")
VIEWS = ViewsSpec(size_px=12)
MIXING = ("byol", "moco_v2", "msf", "simclr", "simsiam")
ASYMMETRIC = ("byol", "moco_v2", "msf", "simsiam")


# ---------------------------------------------------------------------------------------------------- i-CutMix


@pytest.mark.parametrize(("kept", "y", "x", "expected"), [
    (0.75, 0.5, 0.5, (3, 9, 5, 15)),
    (0.5, 0.0, 0.99, (0, 4, 13, 20)),
    (1.0, 0.3, 0.3, (4, 4, 6, 6)),
])  # fmt: skip
def test_a_box_is_cut_at_the_edges(kept: float, y: float, x: float, expected: tuple[int, ...]) -> None:
    assert box_of(kept, y, x, 12, 20) == expected


@pytest.mark.parametrize("step", range(4))
def test_a_mixed_view_is_its_own_but_for_a_box_of_its_partner_s(step: int) -> None:
    views = random_batch(objective("byol"), step).views
    mix = cut_mix(views, torch_generator(step, "cutmix"), 1.0, BATCH, 2, slice(0, BATCH))
    assert mix is not None
    assert sorted(mix.partner.tolist()) == list(range(BATCH))
    assert all(int(one) // 4 == row // 4 for row, one in enumerate(mix.partner))  # of its own group
    for mixed, view in zip(mix.views, views, strict=True):
        for row in range(BATCH):
            from_partner = 0
            for i in range(12):
                for j in range(12):
                    if torch.equal(mixed[row, :, i, j], view[row, :, i, j]):
                        continue
                    assert torch.equal(mixed[row, :, i, j], view[mix.partner[row], :, i, j])
                    from_partner += 1
            is_itself = int(mix.partner[row]) == row
            assert from_partner == (0 if is_itself else round((1 - mix.share) * 144))
    assert mix.share + 0.1 >= 0.5  # never much more of the partner than of itself, but for rounding to pixels
    assert any(not torch.equal(mixed, view) for mixed, view in zip(mix.views, views, strict=True)) or mix.share == 1


def test_replicas_see_the_mixed_batch_of_one() -> None:
    class Second(SingleProcess):
        count, index = 2, 1

    whole, half = (
        make_batches(tiny_images(), None, BATCH, [VIEWS] * 2, 0, replicas, CPU, mix_p=1.0, mix_groups=2)(3)
        for replicas in (SingleProcess(), Second())
    )
    plain = make_batches(tiny_images(), None, BATCH, [VIEWS] * 2, 0, SingleProcess(), CPU)(3)
    assert whole.mix is not None
    assert half.mix is not None
    assert plain.mix is None
    assert torch.equal(half.mix.views[0], whole.mix.views[0][BATCH // 2 :])
    assert torch.equal(half.mix.partner + BATCH // 2, whole.mix.partner[BATCH // 2 :])
    assert all(torch.equal(*pair) for pair in zip(plain.views, whole.views, strict=True))  # keys are not mixed


def test_so_many_steps_are_mixed() -> None:
    views = random_batch(objective("byol"), 0).views
    found = [
        cut_mix(views, torch_generator(step, "cutmix"), 0.25, BATCH, 1, slice(0, BATCH)) is not None
        for step in range(400)
    ]
    assert 60 < sum(found) < 140  # more than 4.6 standard deviations around 100


def distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -F.cosine_similarity(prediction, target, dim=1).mean()


def slow_byol(m: Any, queries: Any, keys: Any, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    online = [m.predictor(m.projector(m.backbone(view))) for view in queries]
    targets = [of(m.target(view)) for view in keys]
    return 4 + 2 * distance(online[0], targets[1]) + 2 * distance(online[1], targets[0])


def slow_simsiam(m: Any, queries: Any, keys: Any, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    online = [m.predictor(m.projector(m.backbone(view))) for view in queries]
    targets = [of(m.projector(m.backbone(view))) for view in keys]
    return (distance(online[0], targets[1]) + distance(online[1], targets[0])) / 2


def slow_moco(m: Any, queries: Any, keys: Any, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    query = F.normalize(m.projector(m.backbone(queries[0])), dim=1)
    positive = of(F.normalize(m.key_encoder(keys[1]), dim=1))
    return info_nce(query, positive, m.queue.rows, m.spec.temperature)


def slow_msf(m: Any, queries: Any, keys: Any, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    prediction = m.predictor(m.projector(m.backbone(queries[0])))
    targets = F.normalize(m.target(keys[1]), dim=1)
    return mean_shift(prediction, of(nearest(targets, targets, m.queue, m.spec.neighbours)))


def slow_simclr(m: Any, queries: Any, keys: Any, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    both = torch.stack((queries[0], keys[1]), 1).flatten(0, 1)
    rows = F.normalize(m.projector(m.backbone(both)), dim=1)
    goes_to, total = of(torch.arange(len(queries[0]))).tolist(), torch.zeros(())
    for image, other in enumerate(goes_to):
        for row, positive in ((2 * image, 2 * other + 1), (2 * other + 1, 2 * image)):
            logits = torch.stack([rows[row] @ rows[k] for k in range(len(rows)) if k != row]) / m.spec.temperature
            total = total + torch.logsumexp(logits, 0) - rows[row] @ rows[positive] / m.spec.temperature
    return total / len(rows)


SLOW = {"byol": slow_byol, "simclr": slow_simclr, "simsiam": slow_simsiam, "moco_v2": slow_moco, "msf": slow_msf}


@pytest.mark.parametrize("name", MIXING)
def test_a_mixed_query_is_pulled_to_both_by_their_shares(name: str) -> None:
    spec = train_spec(name, bn_groups=1)
    method = spec.method.build(spec, 0).train()
    plain, other = random_batch(method, 0), random_batch(method, 1)
    partner = torch.tensor([3, 0, 1, 2, 7, 4, 5, 6])
    with torch.no_grad():
        mixed = method.loss(plain._replace(mix=Mix(other.views, 0.7, partner))).loss
        own = SLOW[name](method, other.views, plain.views, lambda rows: rows)
        theirs = SLOW[name](method, other.views, plain.views, lambda rows: rows[partner])
        unmixed = method.loss(plain._replace(mix=Mix(plain.views, 1.0, partner))).loss
        torch.testing.assert_close(mixed, 0.7 * own + 0.3 * theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(unmixed, method.loss(plain).loss, rtol=1e-5, atol=1e-6)
    assert METHODS[name].mixes


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_no_gradient_reaches_a_target_of_mixed_queries(name: str) -> None:
    method = objective(name)
    keys = tuple(view.requires_grad_() for view in random_batch(method, 0).views)
    queries = random_batch(method, 1).views
    method.loss(Batch(keys, 0, mix=Mix(queries, 0.6, torch.arange(BATCH).flip(0)))).loss.backward()
    assert all(view.grad is None for view in keys)


# ------------------------------------------------------------------------------------------ localized cropping


def test_the_second_box_lies_in_the_first_one_s_neighbourhood() -> None:
    height, width, count = 24, 40, 400
    spec = ViewsSpec(size_px=12, crop_scale=(0.2, 1.0))
    uniforms = [draw_uniform(count, torch_generator(0, "localized", view)) for view in range(2)]
    first, second = (parameters_of(uniform, height, width, spec) for uniform in uniforms)
    swaps = torch.arange(count) % 2 == 0
    one, other = localize(first, second, uniforms[1], swaps, height, width, 0.2, 0.2)
    whole = 0
    for row in range(count):
        kept, near = (other, one) if swaps[row] else (one, other)
        box = [float(part[row]) for part in first[:4]]
        assert [float(part[row]) for part in kept[:4]] == box
        top, left, box_height, box_width = (float(part[row]) for part in near[:4])
        down, across = int(0.2 * box[2]), int(0.2 * box[3])
        rows = max(0, box[0] - down), min(height, box[0] + box[2] + down)
        columns = max(0, box[1] - across), min(width, box[1] + box[3] + across)
        assert rows[0] <= top
        assert top + box_height <= rows[1]
        assert columns[0] <= left
        assert left + box_width <= columns[1]
        room = (rows[1] - rows[0]) * (columns[1] - columns[0])
        assert box_height * box_width >= 0.8 * min(0.2 * height * width, room)  # sides are whole pixels
        whole += box_height * box_width == room
    assert whole < count / 2
    assert all(torch.equal(*pair) for pair in zip(one[4:], first[4:], strict=True))  # colours are as drawn
    assert all(torch.equal(*pair) for pair in zip(other[4:], second[4:], strict=True))


def test_two_localized_views_are_more_alike_than_two_independent_ones() -> None:
    ramp = torch.arange(48, dtype=torch.uint8).mul(5).expand(3, 48, 48)  # a column's brightness is its place
    images = ramp.expand(BATCH * 8, 3, 48, 48).contiguous()
    still = ViewsSpec(size_px=12, crop_scale=(0.05, 0.2), flip_p=0, jitter_p=0, grey_p=0, blur_p=0)
    apart = []
    for margin in (None, 0.2):
        batch = make_batches(images, None, 64, [still] * 2, 0, SingleProcess(), CPU, crop_margin=margin)
        one, other = batch(0).views
        apart.append(float((one.mean((1, 2, 3)) - other.mean((1, 2, 3))).abs().mean()))
    assert apart[1] < apart[0] / 2


# ------------------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize(("probability", "other", "expected"), [(0.0, 0.5, 0.5), (0.2, 0.2, 0.36), (1.0, 0.5, 1.0)])
def test_of_two_such_steps_one_acts(probability: float, other: float, expected: float) -> None:
    assert either(probability, other) == pytest.approx(expected)
    assert 0 <= either(probability, other) <= 1


def test_blur_and_luminance_change_these_alone() -> None:
    found = BlurLuminanceSpec().train(small.BYOL)
    assert found.fit.views.blur_p == 0.5
    assert found.fit.views.grey_p == pytest.approx(0.36)
    old = {name: getattr(small.BYOL.fit.views, name) for name in ("blur_p", "blur_sigma_px", "grey_p")}
    fit = found.fit.model_copy(update={"views": found.fit.views.model_copy(update=old)})
    assert found.model_copy(update={"fit": fit}) == small.BYOL


DEFENCES = (ICutMixSpec(), LocalizedCroppingSpec(), BlurLuminanceSpec())


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda one: one.kind)
def test_each_trains_what_it_can_and_refuses_the_rest(defence: Any) -> None:
    for train in (*ssl.MINI.methods.values(), clip.TINY):
        kind = train.method.kind
        if kind in MIXING:
            changed = defence.train(train)
            assert changed != train
            assert TrainSpec.model_validate(changed.model_dump()) == changed
        else:
            with pytest.raises(
                ValueError, match=f"defence {defence.kind} is for methods that pull .*, found method {kind}"
            ):
                RunSpec(dataset=clip.cifar10(), attack=small.attack(11, "cat"), train=train, defences=(defence,))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"mix_p": 1.0}, {"crops": "localized"}], ids=str)
def test_a_training_takes_the_ingredient(changes: dict[str, str], tmp_path: Any) -> None:
    from ssl_backdoor.specs import Resources
    from ssl_backdoor.train.checkpoint import NoCheckpoints
    from ssl_backdoor.train.pretrain import pretrain
    from tests.support.tiny_sets import tiny_dataset

    dataset = tiny_dataset(tmp_path / "data")
    losses = []
    for number, more in enumerate(({}, changes)):
        spec = TrainSpec.model_validate({**dict(train_spec("byol", epochs=2)), **more})
        (out := tmp_path / str(number)).mkdir()
        resources = Resources(device="cpu")
        losses.append(pretrain(spec, dataset, None, out, 0, resources, NoCheckpoints())["final_loss"])
    assert losses[0] != losses[1]
