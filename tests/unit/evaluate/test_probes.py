from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_backdoor.evaluate import probes
from ssl_backdoor.evaluate.probes import (
    Scores,
    knn,
    labelled_subset,
    linear,
    linear_adam,
    linear_on_map,
    linear_sgd,
    predict,
    standardiser,
)
from ssl_backdoor.seeds import stream, torch_generator


def clusters(n: int, classes: int = 3, dim: int = 8, noise: float = 1.0, name: str = "train") -> tuple[Tensor, Tensor]:
    centres = torch.from_numpy(stream(0, "centres").normal(0, 1, (classes, dim)))
    labels = torch.arange(n) % classes
    features = centres[labels] + noise * torch.from_numpy(stream(0, name).normal(0, 1, (n, dim)))
    return features.float(), labels


def labels_of(scores: Scores, features: Tensor) -> list[int]:
    return predict(scores, features, 5).tolist()


# -------------------------------------------------------------------------- preprocessing


def test_the_standardiser_is_the_papers() -> None:
    features, _ = clusters(50)
    rows = features.double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (unit - unit.mean(0)) / np.sqrt(unit.var(0, ddof=1) + 1e-5)
    np.testing.assert_allclose(standardiser(features)(features).numpy(), expected, atol=1e-4)


def test_statistics_are_the_training_features_own() -> None:
    train, test = clusters(50)[0], 3 * clusters(20, name="test")[0]
    standardise = standardiser(train)
    np.testing.assert_allclose(standardise(test).numpy(), standardise(test / 3).numpy(), atol=1e-5)
    assert standardiser(train[:1])(test).isfinite().all()


# -------------------------------------------------------------------------- kNN


def slow_knn(train: Tensor, labels: Tensor, test: Tensor, k: int) -> list[int]:
    predicted = []
    for row in F.normalize(test, dim=1):
        similarity = (F.normalize(train, dim=1) @ row).tolist()
        nearest = sorted(range(len(train)), key=lambda index: -similarity[index])[:k]
        votes = Counter(int(labels[index]) for index in nearest)
        sums = {label: sum(similarity[i] for i in nearest if labels[i] == label) for label in votes}
        predicted.append(max(votes, key=lambda label: (votes[label], sums[label])))
    return predicted


@pytest.mark.parametrize("k", [1, 2, 5, 20, 1000])
def test_knn_equals_the_slow_loop(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_BLOCK_CELLS", 60 * 7)  # several blocks
    train, labels = clusters(60, classes=4, dim=3, noise=2.0)
    test, _ = clusters(30, classes=4, dim=3, noise=2.0, name="test")
    assert labels_of(knn(train, labels, 4, k), test) == slow_knn(train, labels, test, k)


def test_a_tie_goes_to_the_larger_summed_similarity_even_if_negative() -> None:
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [-0.6, 0.8]])
    vote = knn(train, torch.tensor([0, 1, 2, 2]), 3, 2)
    assert labels_of(vote, torch.tensor([[0.9, 0.1], [0.5, 0.9], [-1.0, 0.1]])) == [0, 1, 2]
    opposite = knn(torch.tensor([[-1.0, 0.0], [-0.9, 0.1]]), torch.tensor([0, 1]), 3, 2)
    assert labels_of(opposite, torch.tensor([[1.0, 0.0]])) == [1]


def test_draws_of_the_labelled_subset_differ_and_the_first_is_the_one_of_before() -> None:
    keys = pa.chunked_array([[f"k{index}" for index in range(200)]])
    labels = (np.arange(200) % 4).astype(np.int32)
    first = labelled_subset(keys, labels, 0.1, 3)
    draws = [labelled_subset(keys, labels, 0.1, 3, draw) for draw in range(4)]
    assert np.array_equal(first, draws[0])
    assert len({tuple(rows) for rows in draws}) == 4
    assert all(np.bincount(labels[rows]).tolist() == [5] * 4 for rows in draws)


# -------------------------------------------------------------------------- linear


def test_linear_agrees_with_scikit_learn() -> None:
    train, labels = clusters(200, noise=1.5)
    test, _ = clusters(300, noise=1.5, name="test")
    standardise, l2 = standardiser(train), 1e-3
    # scikit-learn minimises 1/2 |W|^2 + C * sum of losses
    reference = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=5000)
    reference.fit(standardise(train).double().numpy(), labels.numpy())
    expected = reference.predict(standardise(test).double().numpy())
    assert labels_of(linear(train, labels, 3, l2), test) == expected.tolist()


@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_linear_is_converged_on_fifty_labels(l2: float, dim: int) -> None:
    train, labels = clusters(50, classes=5, dim=dim, noise=1.0)
    test, _ = clusters(200, classes=5, dim=dim, noise=1.0, name="test")
    standardise = standardiser(train)
    reference = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-13, max_iter=10_000, solver="newton-cholesky")
    reference.fit(standardise(train).double().numpy(), labels.numpy())
    expected = reference.decision_function(standardise(test).double().numpy())
    apart = linear(train, labels, 5, l2)(test).double().numpy() - expected
    # Scores are up to a constant an image; they were 0.06 away where the tolerance knew nothing of l2.
    assert np.abs(apart - apart.mean(axis=1, keepdims=True)).max() < 1e-3


@pytest.mark.parametrize("n", [50, 400])
def test_l2_is_the_one_of_the_smallest_cross_entropy_on_held_out_folds(n: int) -> None:
    train, labels = clusters(n, classes=5, dim=30, noise=3.0)
    inputs = F.pad(standardiser(train)(train).double(), (0, 1), value=1.0)
    fold = probes._folds(labels, 7)
    counts = torch.stack([(labels[fold == index]).bincount(minlength=5) for index in range(5)])
    assert counts.max() - counts.min() <= 1  # stratified
    losses = []
    for l2 in probes.L2_GRID:
        total = 0.0
        for index in range(5):
            held_out = fold == index
            size = int((~held_out).sum())
            reference = LogisticRegression(C=1 / (l2 * size), tol=1e-9, max_iter=5000, solver="newton-cholesky")
            reference.fit(inputs[~held_out, :-1].numpy(), labels[~held_out].numpy())
            log_share = torch.from_numpy(reference.predict_log_proba(inputs[held_out, :-1].numpy()))
            total += F.nll_loss(log_share, labels[held_out], reduction="sum").item()
        losses.append(total)
    before = inputs.clone()
    chosen = probes.choose_l2(inputs, labels, 5, 7)
    assert chosen == probes.L2_GRID[int(np.argmin(losses))]
    assert torch.equal(inputs, before)
    own, given = linear(train, labels, 5, seed=7), linear(train, labels, 5, chosen)
    assert own(train).tolist() == given(train).tolist()


def test_few_labels_want_more_regularisation_and_get_it() -> None:
    test, truth = clusters(2000, classes=5, dim=40, noise=3.0, name="test")
    train, labels = clusters(250, classes=5, dim=40, noise=3.0)
    right = {l2: (predict(linear(train, labels, 5, l2), test, 5) == truth).sum() for l2 in (None, 1e-4)}
    best = max((predict(linear(train, labels, 5, l2), test, 5) == truth).sum() for l2 in probes.L2_GRID)
    assert right[None] - right[1e-4] > (best - right[1e-4]) / 2 > 40


def test_images_that_are_alone_in_their_class_are_never_held_out() -> None:
    train, labels = clusters(5, classes=5)
    assert probes._folds(labels, 0).tolist() == [-1] * 5
    assert linear(train, labels, 5)(train).tolist() == linear(train, labels, 5, probes.L2_GRID[0])(train).tolist()
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert (probes._folds(labels, 0) == -1).tolist() == [False] * 4 + [True]
    assert linear(train, labels, 3)(train).isfinite().all()


def test_linear_goes_on_to_the_optimum_where_features_say_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_BLOCK_CELLS", 7 * 40)  # several blocks
    roots, root_of = [], probes._curvature_root
    monkeypatch.setattr(probes, "_curvature_root", lambda *args: roots.append(root_of(*args)) or roots[-1])
    train, labels = clusters(200, noise=3.0)
    alike = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    train = torch.cat([train, 10 * alike[:, :1] + 0.1 * alike, 10 * alike[:, :1] + 0.1 * alike], dim=1)
    l2 = 1e-5
    standardised = standardiser(train)(train).double().numpy()
    reference = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-12, solver="newton-cholesky").fit(
        standardised, labels.numpy()
    )
    apart = linear(train, labels, 3, l2)(train).double().numpy() - reference.decision_function(standardised)
    assert np.abs(apart - apart.mean(axis=1, keepdims=True)).max() < 1e-3  # scores are up to a constant an image
    assert len(roots) == 1


def test_linear_converges_on_separable_data_and_repeats_itself() -> None:
    train, labels = clusters(12, noise=0.1)
    first, second = linear(train, labels, 3, 1e-4), linear(train, labels, 3, 1e-4)
    assert labels_of(first, train) == labels.tolist()
    assert first(train).tolist() == second(train).tolist()


def test_classes_without_a_labelled_image_are_not_predicted() -> None:
    train, labels = clusters(30, classes=2)
    assert set(labels_of(linear(train, labels, 5, 1e-4), train)) <= {0, 1}


def slow_sgd(inputs: np.ndarray, labels: Tensor, classes: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The schedule written out in NumPy, with the gradient of softmax regression by hand."""
    generator, bound = torch_generator(seed, name), inputs.shape[1] ** -0.5
    head = torch.empty(classes, inputs.shape[1] + 1).uniform_(-bound, bound, generator=generator).double().numpy()
    weight, bias = head[:, :-1], head[:, -1]
    velocity, bias_velocity = np.zeros_like(weight), np.zeros_like(bias)
    for epoch in range(40):
        rate = 0.01 * 0.1 ** ((epoch >= 15) + (epoch >= 30))
        order = torch.randperm(len(inputs), generator=generator).numpy()
        for start in range(0, len(inputs), 256):
            rows = order[start : start + 256]
            logits = inputs[rows] @ weight.T + bias
            share = np.exp(logits - logits.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            error = (share - np.eye(classes)[labels[rows]]) / len(rows)
            velocity = 0.9 * velocity + error.T @ inputs[rows] + 1e-4 * weight
            bias_velocity = 0.9 * bias_velocity + error.sum(0) + 1e-4 * bias
            weight, bias = weight - rate * velocity, bias - rate * bias_velocity
    return weight, bias


def test_linear_sgd_is_the_papers_schedule() -> None:
    train, labels = clusters(600, noise=2.0)
    test, _ = clusters(400, noise=2.0, name="test")
    standardise = standardiser(train)
    weight, bias = slow_sgd(standardise(train).double().numpy(), labels, 3, 4, "linear_sgd")
    logits = standardise(test).double().numpy() @ weight.T + bias
    np.testing.assert_allclose(linear_sgd(train, labels, 3, seed=4)(test).numpy(), logits, atol=1e-4)


def test_the_head_on_a_map_is_the_same_schedule_on_features_as_they_are() -> None:
    train, labels = clusters(600, noise=2.0)
    test, _ = clusters(400, noise=2.0, name="test")
    weight, bias = slow_sgd(train.double().numpy(), labels, 3, 4, "linear_layer2")
    logits = test.double().numpy() @ weight.T + bias
    found = linear_on_map(train, labels, 3, 4, "linear_layer2")(test)
    np.testing.assert_allclose(found.numpy(), logits, atol=1e-4)


def test_the_gradient_by_hand_is_autograds() -> None:
    inputs, labels = clusters(20)
    head = torch.from_numpy(stream(0, "head").normal(0, 1, (3, 8))).float().requires_grad_()
    loss, gradient = probes._cross_entropy(inputs, labels, head)
    expected = F.cross_entropy(inputs @ head.T, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, head)[0])


def test_linear_sgd_depends_on_its_seed_alone() -> None:
    train, labels = clusters(300, noise=3.0)
    test, _ = clusters(500, noise=3.0, name="test")
    first, again, other = (linear_sgd(train, labels, 3, seed)(test).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


# -------------------------------------------------------------------------- BYOL's head


@pytest.fixture
def short_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thirtieth of the images and a twentieth of the epochs, which leave what is tested as it is."""
    monkeypatch.setattr(probes, "_ADAM_EPOCHS", 25)
    monkeypatch.setattr(probes, "_ADAM_BATCH", 30)


def torchs_adam(features: Tensor, labels: Tensor, classes: int, seed: int) -> torch.nn.Linear:
    """The same steps by torch's own layer, loss, optimiser and schedule, in double precision."""
    generator, bound = torch_generator(seed, "linear_adam"), features.shape[1] ** -0.5
    head = torch.empty(classes, features.shape[1] + 1).uniform_(-bound, bound, generator=generator).double()
    size = probes._ADAM_BATCH
    kept = torch.randperm(len(features), generator=generator)
    kept = kept[: len(features) // size * size] if len(features) > size else kept
    layer = torch.nn.Linear(features.shape[1], classes).double()
    with torch.no_grad():
        layer.weight.copy_(head[:, :-1])
        layer.bias.copy_(head[:, -1])
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=5e-6)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1e-4 ** (1 / probes._ADAM_EPOCHS))
    for _ in range(probes._ADAM_EPOCHS):
        order = kept[torch.randperm(len(kept), generator=generator)]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows].double()), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return layer


@pytest.mark.parametrize("n", [12, 30, 31, 100])
@pytest.mark.usefixtures("short_adam")
def test_linear_adam_is_torchs_adam(n: int) -> None:
    train, labels = clusters(n, noise=2.0)
    test, _ = clusters(50, noise=2.0, name="test")
    expected = torchs_adam(train, labels, 3, seed=4)(test.double()).detach()
    np.testing.assert_allclose(linear_adam(train, labels, 3, seed=4)(test).numpy(), expected.numpy(), atol=1e-4)


def test_adams_first_step_is_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """mean / sqrt(square) is the gradient's sign, whatever its size: closed form."""
    train, labels = clusters(20)
    heads = []
    for epochs in (0, 1):
        monkeypatch.setattr(probes, "_ADAM_EPOCHS", epochs)
        scores = linear_adam(train, labels, 3, seed=0)
        rows = torch.cat([torch.zeros(1, 8), torch.eye(8)])
        bias, *columns = scores(rows)
        heads.append(torch.stack([bias, *(column - bias for column in columns)]))
    torch.testing.assert_close((heads[1] - heads[0]).abs(), torch.full((9, 3), 1e-2), rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("short_adam")
def test_what_is_over_a_whole_batch_is_never_seen() -> None:
    """95 images of which 90 are kept: a broken image among the five left out breaks nothing."""
    train, labels = clusters(95)
    generator = torch_generator(1, "linear_adam")
    torch.empty(3, 9).uniform_(generator=generator)
    left_out = torch.randperm(95, generator=generator)[90:]
    broken = train.clone()
    broken[left_out] = torch.nan
    first, second = (linear_adam(features, labels, 3, seed=1)(train) for features in (train, broken))
    assert torch.equal(first, second)


# -------------------------------------------------------------------------- label fractions


def keys(n: int) -> pa.ChunkedArray:
    return pa.chunked_array([[f"k{index}" for index in range(n)]])


def test_the_subset_is_stratified_nested_and_never_misses_a_class() -> None:
    labels = np.array([0] * 100 + [1] * 30 + [2], np.int32)
    small, large, everything = (labelled_subset(keys(131), labels, f, 0) for f in (0.01, 0.1, 1.0))
    assert Counter(labels[small].tolist()) == {0: 1, 1: 1, 2: 1}
    assert Counter(labels[large].tolist()) == {0: 10, 1: 3, 2: 1}
    assert set(small) <= set(large)
    assert everything.tolist() == list(range(131))


def test_the_subset_follows_the_keys_not_the_rows() -> None:
    labels = np.array([0, 1] * 50, np.int32)
    order = stream(0, "order").permutation(100)
    plain = keys(100).take(pa.array(labelled_subset(keys(100), labels, 0.1, 0))).to_pylist()
    mixed_keys = keys(100).take(pa.array(order))
    mixed = mixed_keys.take(pa.array(labelled_subset(mixed_keys, labels[order], 0.1, 0))).to_pylist()
    assert set(plain) == set(mixed)
    other = keys(100).take(pa.array(labelled_subset(keys(100), labels, 0.1, 1))).to_pylist()
    assert set(other) != set(plain)
