from collections import deque

import pytest
import torch
from torch import nn

from ssl_backdoor.methods.parts import EMACopy, Queue, batch_norm_no_affine
from ssl_backdoor.seeds import torch_generator


@pytest.mark.parametrize(("size", "batches"), [(4, [4, 4]), (5, [2, 2, 2, 2]), (3, [1, 7, 2]), (3, [3, 8])])
def test_queue_holds_the_newest_rows_in_order(size: int, batches: list[int]) -> None:
    queue = Queue(torch.zeros(size, 1))
    expected = deque([0.0] * size, maxlen=size)
    number = 0
    for batch in batches:
        new = [float(number + i + 1) for i in range(batch)]
        number += batch
        queue.push(torch.tensor(new)[:, None])
        expected.extend(new)
        oldest = int(queue.position)
        in_order = torch.cat([queue.rows[oldest:], queue.rows[:oldest]])[:, 0].tolist()
        assert in_order == list(expected)


def test_queue_survives_a_restart() -> None:
    queue, again = Queue(torch.zeros(5, 2)), Queue(torch.ones(5, 2))
    queue.push(torch.ones(3, 2))
    again.load_state_dict(queue.state_dict())
    queue.push(torch.full((4, 2), 7.0))
    again.push(torch.full((4, 2), 7.0))
    assert torch.equal(queue.rows, again.rows)


def test_copy_follows_a_still_network_geometrically() -> None:
    network = nn.Linear(3, 2)
    copied = EMACopy(network)
    start = [parameter.clone() for parameter in copied.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_generator(0, "goal")))
    for _ in range(5):
        copied.update((network,), 0.9)
    for parameter, before, goal in zip(copied.parameters(), start, network.parameters(), strict=True):
        torch.testing.assert_close(parameter, before * 0.9**5 + goal * (1 - 0.9**5))


@pytest.mark.parametrize(("ema_decay", "moves"), [(1.0, False), (0.0, True)])
def test_copy_at_the_ends_is_exact(ema_decay: float, moves: bool) -> None:
    network = nn.Linear(3, 2)
    copied = EMACopy(network)
    before = [parameter.clone() for parameter in copied.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.3)
    copied.update((network,), ema_decay)
    expected = list(network.parameters()) if moves else before
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), expected, strict=True))


def test_copy_keeps_its_own_statistics_and_takes_no_gradient() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    copied = EMACopy(network)
    rows = torch.randn(6, 3, generator=torch_generator(0, "rows"))
    assert not copied(rows).requires_grad
    copied.update((network,), 0.5)
    assert copied.state_dict()["networks.0.1.num_batches_tracked"].item() == 1
    assert network.state_dict()["1.num_batches_tracked"].item() == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_no_affine_standardises_each_group(groups: int) -> None:
    rows = 3 + 5 * torch.randn(8, 2, generator=torch_generator(0, "rows"))
    norm = batch_norm_no_affine(2, groups)
    for part, group in zip(norm(rows).chunk(groups), rows.chunk(groups), strict=True):
        expected = (group - group.mean(0)) / (group.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(part, expected)
    assert not list(norm.parameters())
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert set(norm.state_dict()) == statistics
    mean, variance = norm.state_dict()["running_mean"], norm.state_dict()["running_var"]
    torch.testing.assert_close(norm.eval()(rows), (rows - mean) / (variance + 1e-5).sqrt())
