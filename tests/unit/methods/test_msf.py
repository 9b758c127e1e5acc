import copy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import Batch
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.losses import byol_regression
from ssl_backdoor.methods.msf import MSF, mean_shift, nearest
from ssl_backdoor.methods.parts import Queue
from ssl_backdoor.seeds import stream, torch_generator
from ssl_backdoor.specs import MSFSpec, Resources, TrainSpec, ViewsSpec
from ssl_backdoor.train.checkpoint import NoCheckpoints
from ssl_backdoor.train.pretrain import pretrain
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import BACKBONE, fit_spec, random_batch

SPEC = MSFSpec(
    projector_hidden_dim=16, embedding_dim=8, predictor_hidden_dim=16, queue_size=20, neighbours=3, ema_decay=0.9
)


def method(bn_groups: int = 1, **changes: object) -> MSF:
    return MSF(SPEC.model_copy(update=changes), build_backbone(BACKBONE, bn_groups, 0), 0).train()


def rows(name: str, count: int, unit: bool = True) -> np.ndarray:
    drawn = stream(0, name).normal(size=(count, 4))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) if unit else drawn


def slow_loss(prediction: np.ndarray, targets: np.ndarray, queue: np.ndarray, k: int) -> float:
    """Upstream's: the mean distance to the target's k nearest in a queue that holds the targets already."""
    losses = []
    for p, t in zip(prediction, targets, strict=True):
        order = sorted(range(len(queue)), key=lambda j, t=t: float(((t - queue[j]) ** 2).sum()))
        query = p / np.linalg.norm(p)
        losses.append(sum(float(((query - queue[j]) ** 2).sum()) for j in order[:k]) / k)
    return float(np.mean(losses))


@pytest.mark.parametrize(("batch", "pushed"), [(5, 0), (5, 4), (5, 10), (12, 3), (30, 7)])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_searching_ahead_is_pushing_then_searching(batch: int, pushed: int, k: int) -> None:
    """Also around the ring's end, and where the batch alone fills the queue."""
    queue = Queue(torch.tensor(rows("queue", 12)))
    queue.push(torch.tensor(rows("older", pushed)))
    before = queue.rows.clone()
    prediction, targets = rows("prediction", batch, unit=False), rows("targets", batch)
    new = torch.tensor(targets)
    loss = mean_shift(torch.tensor(prediction), nearest(new, new, queue, k).float())
    assert torch.equal(queue.rows, before)
    queue.push(new)
    assert loss.item() == pytest.approx(slow_loss(prediction, targets, queue.rows.numpy(), k), rel=1e-5)


def test_the_target_is_its_own_nearest_so_one_neighbour_is_byol() -> None:
    queue = Queue(F.normalize(torch.randn(50, 4, generator=torch_generator(0, "queue")), dim=1))
    prediction, targets = torch.randn(6, 4), F.normalize(torch.randn(6, 4), dim=1)
    found = nearest(targets, targets, queue, 1)
    assert torch.equal(found[:, 0], targets)
    assert mean_shift(prediction, found).item() == pytest.approx(byol_regression(prediction, targets).item(), rel=1e-5)


@pytest.mark.parametrize(("sign", "expected"), [(3.0, 0.0), (-0.5, 4.0)])
def test_loss_of_a_prediction_on_and_opposite_all_its_neighbours(sign: float, expected: float) -> None:
    neighbours = torch.tensor([[[0.6, 0.8]] * 5])
    assert mean_shift(sign * neighbours[:, 0], neighbours).item() == pytest.approx(expected, abs=1e-6)


def test_a_replica_searches_the_targets_of_all_replicas() -> None:
    queue = Queue(-torch.ones(4, 2) / 2**0.5)
    new = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]]), dim=1)
    found = nearest(new[:2], new, queue, 2)
    assert torch.equal(found, new[torch.tensor([[0, 2], [1, 3]])])


def test_same_sequence_as_upstream() -> None:
    """Upstream moves the target before its forward pass and enqueues at once; ours does both after the update."""
    ours = method()
    encoder = torch.nn.Sequential(copy.deepcopy(ours.backbone), copy.deepcopy(ours.projector))
    predictor, target = copy.deepcopy(ours.predictor), copy.deepcopy(encoder)
    queue, pointer = ours.queue.rows.clone(), 0
    ours_sgd = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    theirs_sgd = torch.optim.SGD([*encoder.parameters(), *predictor.parameters()], lr=0.1)
    for step in range(6):
        batch = random_batch(ours, step, 5)
        ours_sgd.zero_grad()
        loss = ours.loss(batch).loss
        loss.backward()
        ours_sgd.step()
        ours.after_step(step / 6)

        with torch.no_grad():
            for slow, fast in zip(target.parameters(), encoder.parameters(), strict=True):
                slow.copy_(slow * 0.9 + fast * 0.1)
            targets = F.normalize(target(batch.views[1]), dim=1)
        queue[pointer : pointer + 5] = targets
        pointer = (pointer + 5) % 20
        theirs_sgd.zero_grad()
        prediction = F.normalize(predictor(encoder(batch.views[0])), dim=1)
        index = (2 - 2 * targets @ queue.T).topk(3, dim=1, largest=False).indices
        distances = (2 - 2 * prediction @ queue.clone().T).gather(1, index)
        expected = (distances.sum(1) / 3).mean()
        expected.backward()
        theirs_sgd.step()

        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.queue.rows, queue, rtol=1e-3, atol=1e-4)


def test_targets_are_computed_in_shuffled_groups_and_come_back_in_order() -> None:
    ours = method(bn_groups=2)
    target = copy.deepcopy(ours.target)
    batch = random_batch(ours, 3)
    ours.loss(batch)
    order = torch.randperm(8, generator=torch_generator(0, "shuffle_bn", 3))
    expected = torch.empty(8, 8)
    expected[order] = F.normalize(target(batch.views[1][order]), dim=1)
    assert ours.new_targets is not None
    torch.testing.assert_close(ours.new_targets, expected)
    ours.loss(batch._replace(step=4))
    assert not torch.allclose(ours.new_targets, expected, atol=1e-4)


def test_more_neighbours_than_the_queue_holds_are_refused() -> None:
    with pytest.raises(SpecError, match="a queue of 20 embeddings does not hold 21 neighbours; lower"):
        method(neighbours=21)
    everything = method(neighbours=20)
    assert everything.loss(random_batch(everything, 0)).loss.isfinite()


def test_the_targets_view_is_cropped_and_flipped_only() -> None:
    spec = TrainSpec(method=SPEC, backbone=BACKBONE, fit=fit_spec())
    query, target = spec.method.views(spec.fit.views)
    assert query == spec.fit.views
    changed = {name for name in type(query).model_fields if getattr(query, name) != getattr(target, name)}
    assert changed == {"jitter_p", "grey_p", "blur_p"}
    assert (target.jitter_p, target.grey_p, target.blur_p) == (0.0, 0.0, 0.0)
    strong = SPEC.model_copy(update={"weak_target": False})
    assert strong.views(spec.fit.views) == ()


def losses(dataset: Dataset, out: Path, views: ViewsSpec, weak_target: bool) -> list[float]:
    """Of four steps through ``pretrain``."""
    out.mkdir()
    spec = TrainSpec(
        method=SPEC.model_copy(update={"weak_target": weak_target}),
        backbone=BACKBONE,
        fit=fit_spec(epochs=2, views=views),
    )
    pretrain(spec, dataset, None, out, 0, Resources(device="cpu"), NoCheckpoints())
    return [float(value) for value in pq.read_table(out / "curves.parquet")["value"].to_pylist()]


def test_pretraining_gives_the_target_its_own_view(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "data", size=(12, 12))
    strong = ViewsSpec(size_px=12)
    weak = strong.model_copy(update={"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0})
    results = {
        (views is weak, of_target): losses(dataset, tmp_path / f"{views is weak}-{of_target}", views, of_target)
        for views in (strong, weak)
        for of_target in (False, True)
    }
    assert len(results[False, True]) == 4
    assert results[False, True] != pytest.approx(results[False, False], rel=1e-3)
    assert results[True, True] == results[True, False]


def test_the_search_stays_float32_under_autocast() -> None:
    ours = method()
    batch = random_batch(ours, 0)
    new = F.normalize(torch.randn(8, 8), dim=1)
    prediction = torch.randn(8, 8)
    plain = mean_shift(prediction, nearest(new, new, ours.queue, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mean_shift(prediction, nearest(new, new, ours.queue, 3)), plain)
        assert ours.loss(Batch(batch.views)).loss.dtype == torch.float32
