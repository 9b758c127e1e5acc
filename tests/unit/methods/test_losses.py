"""Each loss against slow NumPy loops written from its paper, and one value known in closed form."""

import math

import numpy as np
import pytest
import torch

from ssl_backdoor.methods.losses import byol_regression, info_nce, negative_cosine, nt_xent, similarity_divergence
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


def test_negative_cosine_is_the_papers() -> None:
    prediction, target = rows("prediction", BATCH, unit=False), rows("target", BATCH, unit=False)
    cosines = [p @ t / np.linalg.norm(p) / np.linalg.norm(t) for p, t in zip(prediction, target, strict=True)]
    assert negative_cosine(*tensors(prediction, target)).item() == pytest.approx(-np.mean(cosines), rel=1e-5)


@pytest.mark.parametrize(("target", "expected"), [((3.0, 0.0), -1.0), ((0.0, 2.0), 0.0), ((-0.5, 0.0), 1.0)])
def test_negative_cosine_of_equal_orthogonal_and_opposite(target: tuple[float, float], expected: float) -> None:
    assert negative_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([target])).item() == pytest.approx(expected)


def test_nt_xent_is_the_papers_as_a_whole_and_in_parts() -> None:
    views = rows("views", 2 * BATCH)  # rows 2n and 2n + 1 are one image's
    losses = []
    for i in range(2 * BATCH):
        other = i + 1 if i % 2 == 0 else i - 1
        positive = math.exp(views[i] @ views[other] / 0.5)
        total = sum(math.exp(views[i] @ views[k] / 0.5) for k in range(2 * BATCH) if k != i)
        losses.append(-math.log(positive / total))
    (everyone,) = tensors(views)
    assert nt_xent(everyone, everyone, 0, 0.5).item() == pytest.approx(np.mean(losses), rel=1e-5)
    for start, end in ((0, 4), (4, 10), (8, 10)):
        part = nt_xent(everyone[start:end], everyone, start, 0.5)
        assert part.item() == pytest.approx(np.mean(losses[start:end]), rel=1e-5)


def test_nt_xent_of_orthogonal_images_with_equal_views() -> None:
    views = torch.eye(4).repeat_interleave(2, 0)
    expected = math.log(math.e + 6) - 1  # temperature 1: one positive of cosine 1 and six negatives of cosine 0
    assert nt_xent(views, views, 0, 1.0).item() == pytest.approx(expected, rel=1e-6)


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
        assert negative_cosine(query.bfloat16(), key).dtype == torch.float32
    plain = nt_xent(query[:4], query[:4], 0, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(query[:4], query[:4], 0, 0.2), plain)


def test_gradient_reaches_the_query_only() -> None:
    query, key, queue = tensors(rows("query", BATCH), rows("key", BATCH), rows("queue", SIZE))
    query.requires_grad_()
    info_nce(query, key, queue, 0.2).backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
