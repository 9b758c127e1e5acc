"""Each loss against slow NumPy loops written from its paper, and one value known in closed form."""

import math

import numpy as np
import pytest
import torch

from ssl_backdoor.methods.losses import byol_regression, info_nce, similarity_divergence
from ssl_backdoor.seeds import stream

BATCH, DIM, SIZE = 5, 4, 7


def rows(name: str, count: int, unit: bool = True) -> np.ndarray:
    drawn = stream(0, name).normal(size=(count, DIM))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) if unit else drawn


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


def test_info_nce_is_the_papers() -> None:
    query, key, queue = rows("query", BATCH), rows("key", BATCH), rows("queue", SIZE)
    losses = []
    for i in range(BATCH):
        logits = [query[i] @ key[i] / 0.2] + [query[i] @ queue[j] / 0.2 for j in range(SIZE)]
        losses.append(-math.log(softmax(logits)[0]))
    assert info_nce(*tensors(query, key, queue), 0.2).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_info_nce_of_identical_embeddings_is_log_of_their_number() -> None:
    same = torch.tensor([[1.0, 0.0]])
    loss = info_nce(same.expand(3, 2), same.expand(3, 2), same.expand(9, 2), 0.2)
    assert loss.item() == pytest.approx(math.log(10), rel=1e-6)


def test_byol_regression_is_the_papers() -> None:
    prediction, target = rows("prediction", BATCH, unit=False), rows("target", BATCH, unit=False)
    losses = []
    for p, t in zip(prediction, target, strict=True):
        difference = p / np.linalg.norm(p) - t / np.linalg.norm(t)
        losses.append(sum(d * d for d in difference))  # the paper's squared distance of unit vectors
    assert byol_regression(*tensors(prediction, target)).item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(("target", "expected"), [((3.0, 0.0), 0.0), ((0.0, 2.0), 2.0), ((-0.5, 0.0), 4.0)])
def test_byol_regression_of_equal_orthogonal_and_opposite(target: tuple[float, float], expected: float) -> None:
    assert byol_regression(torch.tensor([[1.0, 0.0]]), torch.tensor([target])).item() == pytest.approx(expected)


def test_similarity_divergence_is_the_papers() -> None:
    student, teacher = rows("student", BATCH), rows("teacher", BATCH)
    student_queue, teacher_queue = rows("student queue", SIZE), rows("teacher queue", SIZE)
    total = 0.0
    for i in range(BATCH):
        p = softmax([teacher[i] @ teacher_queue[j] / 0.04 for j in range(SIZE)])
        q = softmax([student[i] @ student_queue[j] / 0.04 for j in range(SIZE)])
        total += sum(pj * math.log(pj / qj) for pj, qj in zip(p, q, strict=True))
    loss = similarity_divergence(*tensors(student, teacher, student_queue, teacher_queue), 0.04)
    assert loss.item() == pytest.approx(total / BATCH, rel=1e-4)


def test_similarity_divergence_of_a_sure_teacher_and_an_even_student() -> None:
    queue = torch.eye(2)
    teacher, student = torch.tensor([[1.0, -1.0]]) * 50, torch.zeros(1, 2)
    assert similarity_divergence(student, teacher, queue, queue, 1.0).item() == pytest.approx(math.log(2), rel=1e-6)


def test_losses_stay_float32_under_autocast() -> None:
    query, key, queue = tensors(rows("query", BATCH), rows("key", BATCH), rows("queue", SIZE))
    plain = info_nce(query, key, queue, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(query, key, queue, 0.2), plain)
        assert byol_regression(query.bfloat16(), key).dtype == torch.float32
        assert similarity_divergence(query, key, queue, queue, 0.2).dtype == torch.float32


def test_gradient_reaches_the_query_only() -> None:
    query, key, queue = tensors(rows("query", BATCH), rows("key", BATCH), rows("queue", SIZE))
    query.requires_grad_()
    info_nce(query, key, queue, 0.2).backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
