"""Second oracles: our losses and their gradients against lightly's, written by others from the papers."""

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.methods.losses import byol_regression, info_nce, negative_cosine, nt_xent
from ssl_backdoor.seeds import torch_generator

os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"
from lightly.loss import NegativeCosineSimilarity, NTXentLoss

BATCH, DIM, SIZE = 6, 5, 11


def rows(name: str, count: int = BATCH) -> Tensor:
    return torch.randn(count, DIM, generator=torch_generator(0, name))


def value_and_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    for one, other in zip(value_and_gradients(ours, *inputs), value_and_gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def unit(tensor: Tensor) -> Tensor:
    return F.normalize(tensor, dim=1)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent(temperature: float) -> None:
    def ours(first: Tensor, second: Tensor) -> Tensor:
        views = unit(torch.stack([first, second], 1).flatten(0, 1))
        return nt_xent(views, views, 0, temperature)

    assert_same(ours, NTXentLoss(temperature), rows("first"), rows("second"))


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_info_nce(temperature: float) -> None:
    """Theirs keeps the negatives itself, in ``bank``, and takes the keys in after the loss."""
    queue = unit(rows("queue", SIZE))
    theirs = NTXentLoss(temperature, memory_bank_size=(SIZE, DIM))
    theirs.memory_bank.bank.copy_(queue)
    assert_same(
        lambda query, key: info_nce(unit(query), unit(key), queue, temperature), theirs, rows("query"), rows("key")
    )


def test_negative_cosine() -> None:
    assert_same(negative_cosine, NegativeCosineSimilarity(), rows("prediction"), rows("target"))


def test_byol_regression() -> None:
    theirs = NegativeCosineSimilarity()
    assert_same(byol_regression, lambda p, t: 2 * (1 + theirs(p, t)), rows("prediction"), rows("target"))
