"""Probes: classifiers on the features of a frozen backbone. Features in, a score for each class out; clean labels only.

To compare methods, use ``linear``: one head for all, converged, so that no method is favoured by a schedule. The heads
of UMBCvision/SSL-Backdoor at 273ca47 are those that its methods were published with, and are not comparable:
``linear_sgd`` (MoCo, MSF and CompRess: moco/eval_linear.py), ``linear_adam`` (BYOL: byol/eval/sgd.py) and
``linear_on_map`` (Jigsaw, RotNet: jigsaw/eval_conv_linear.py; see layers.py).

NOTE: for all three, upstream's labelled images are those of the evaluated frame here, features computed once; BYOL's
are so upstream as well, the others crop and flip anew in each epoch.
Shapes: N images, D feature dimensions, C classes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from ssl_backdoor.poison.plan import choose
from ssl_backdoor.seeds import Name, torch_generator

_SGD_EPOCHS = 40
_SGD_MILESTONES = (15, 30)
_SGD_BATCH = 256
_ADAM_EPOCHS = 500
_ADAM_BATCH = 1000
_ADAM_LR = (1e-2, 1e-6)
_LBFGS_FIRST_STEPS = 30
"""Before the objective's curvature is looked at: enough where classes are told apart easily."""
_LBFGS_STEPS = 1000
_STEPS_ARE_OVER = 1
"""SciPy's status."""
L2_GRID = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
_FOLDS = 5
_HELD_OUT = 2000
_CV_TOLERANCE = 1e-4
_BLOCK_CELLS = 1 << 23  # similarities or scores held at once: 32 MiB of float32

Scores = Callable[[Tensor], Tensor]
"""Raw features float32 (N, D) -> scores (N, C), larger is likelier; the label of the largest is the prediction."""


class NamedProbe(NamedTuple):
    """A probe under the name it is reported by, e.g. "linear_10"."""

    name: str
    scores: Scores


def predict(scores: Scores, features: Tensor, num_classes: int) -> Tensor:
    """Predicted labels int64 (N,) of raw features float32 (N, D), a block of images at a time."""
    block = max(1, _BLOCK_CELLS // max(num_classes, features.shape[1]))
    return torch.cat([scores(rows).argmax(dim=1) for rows in torch.split(features, block)])


class Standardiser(NamedTuple):
    """L2-normalise each row, subtract ``mean`` (D,), divide by ``scale`` (D,)."""

    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, D) as a linear head sees them."""
        return (F.normalize(features, dim=1) - self.mean) / self.scale


def standardiser(features: Tensor) -> Standardiser:
    """Of the L2-normalised ``features`` (N, D): mean and sqrt(unbiased variance + 1e-5) of each dimension."""
    unit = F.normalize(features, dim=1)
    return Standardiser(unit.mean(dim=0), (unit.var(dim=0, correction=min(1, len(unit) - 1)) + 1e-5).sqrt())


def labelled_subset(
    keys: pa.ChunkedArray, labels: NDArray[np.int32], fraction: float, seed: int, draw: int = 0
) -> NDArray[np.int64]:
    """Rows, int64 (M,), of a stratified subset: round(fraction * n) of each class, at least one. Pure in seed and draw.

    An image's place in the ranking depends on its key alone, so the 1 % subset lies within the 10 % subset, and every
    encoder that is evaluated under one seed sees the same labels.
    """
    names: tuple[Name, ...] = ("labels", draw) if draw else ("labels",)
    rows = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(of_class)))
        rows.append(of_class[choose(keys.take(of_class), count, seed, *names)])
    return np.sort(np.concatenate(rows))


def knn(features: Tensor, labels: Tensor, num_classes: int, neighbours: int) -> Scores:
    """Votes of the ``neighbours`` nearest training images by cosine; a tie goes to the larger summed cosine.

    ``features`` float32 (N, D), ``labels`` int64 (N,). Similarities are held for a block of test images at a time.
    """
    train = F.normalize(features, dim=1)
    k = min(neighbours, len(train))
    block = max(1, _BLOCK_CELLS // len(train))

    def scores(test: Tensor) -> Tensor:
        ballots_of = []
        for rows in torch.split(F.normalize(test, dim=1), block):
            near = (rows @ train.T).topk(k, dim=1)
            voters = labels[near.indices]
            votes = torch.zeros(len(rows), num_classes, dtype=torch.float64, device=rows.device)
            # The summed cosine lies in [-k, k]: divided by 2k + 1 it never outweighs a vote.
            ballots = 1.0 + near.values.double() / (2 * k + 1)
            ballots_of.append(votes.scatter_add_(1, voters, ballots))
        return torch.cat(ballots_of)

    return scores


def linear(features: Tensor, labels: Tensor, num_classes: int, l2: float | None = None, seed: int = 0) -> Scores:
    """The common head: multinomial logistic regression to convergence (L-BFGS, float64, from zero), bias not penalised.

        minimise  mean cross-entropy + l2 / 2 * |weight|^2

    ``features`` float32 (N, D), ``labels`` int64 (N,). Without ``l2`` ``choose_l2`` does, under ``seed``.
    """
    standardise = standardiser(features)
    inputs = _with_ones(standardise(features).double())
    if l2 is None:
        l2 = choose_l2(inputs, labels, num_classes, seed)
    start = torch.zeros(num_classes, inputs.shape[1], dtype=torch.float64, device=inputs.device)
    tolerance = min(1e-6, 1e-4 * l2) if l2 else 1e-6  # a gradient of g leaves the weights up to g / l2 from the optimum
    return _logits(_converged(inputs, labels, l2, start, tolerance).float(), standardise)


def choose_l2(inputs: Tensor, labels: Tensor, num_classes: int, seed: int) -> float:
    """Of ``L2_GRID`` the one with the smallest cross-entropy on held-out images, by cross-validation on these alone.

    Five stratified folds, drawn from the stream "l2"; so many of them are held out in turn that 2,000 images are. The
    grid is walked from the strongest on, each fit starting from the one before, until the cross-entropy rises. An image
    that is alone in its class is never held out; where all are, nothing can be compared and the strongest is taken.

    ``inputs`` float64 (N, D + 1) as the head sees them, left as they are; ``labels`` int64 (N,).
    """
    fold = _folds(labels, seed)
    sizes = fold[fold >= 0].bincount(minlength=_FOLDS)
    used = [i for i in range(_FOLDS) if sizes[i] and sizes[:i].sum() < _HELD_OUT]
    heads = [torch.zeros(num_classes, inputs.shape[1], dtype=torch.float64, device=inputs.device) for _ in used]
    best, smallest = L2_GRID[0], math.inf
    for l2 in L2_GRID if used else ():
        loss = 0.0
        for place, index in enumerate(used):
            learnt, held_out = fold != index, fold == index
            heads[place] = _converged(inputs[learnt], labels[learnt], l2, heads[place], _CV_TOLERANCE)
            loss += F.cross_entropy(inputs[held_out] @ heads[place].T, labels[held_out], reduction="sum").item()
        if not loss < smallest:
            break
        best, smallest = l2, loss
    return best


def _folds(labels: Tensor, seed: int) -> Tensor:
    """Fold of each of (N,) images, int64, the same number in each of each class; -1 for one alone in its class."""
    order = torch.randperm(len(labels), generator=torch_generator(seed, "l2")).to(labels.device)
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels), device=labels.device) % _FOLDS
    alone = labels.bincount()[labels] == 1
    return fold.masked_fill(alone, -1)


def _converged(inputs: Tensor, labels: Tensor, l2: float, start: Tensor, tolerance: float) -> Tensor:
    """The head (C, D + 1) where no part of the objective's gradient exceeds ``tolerance``, from ``start``.

    ``inputs`` are written over where the first steps were not enough.
    """
    penalty = torch.full((inputs.shape[1],), l2, dtype=torch.float64, device=inputs.device)
    penalty[-1] = 0.0
    head, is_last = _minimised(inputs, labels, torch.diag(penalty), start, _LBFGS_FIRST_STEPS, tolerance)
    if is_last:
        return head
    root = _curvature_root(inputs, head, penalty)
    basis = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=False)
    for rows in _row_blocks(inputs):
        rows.copy_(rows @ basis.T)
    head, _ = _minimised(inputs, labels, (basis * penalty) @ basis.T, head @ root, _LBFGS_STEPS, tolerance)
    found: Tensor = head @ basis
    return found


def _minimised(
    inputs: Tensor, labels: Tensor, penalty: Tensor, start: Tensor, steps: int, tolerance: float
) -> tuple[Tensor, bool]:
    """The head (C, D) after L-BFGS from ``start``, and whether it ended by itself; ``penalty`` is (D, D), float64."""

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        head = torch.from_numpy(flat).to(inputs.device).view(start.shape)
        loss, gradient = _cross_entropy(inputs, labels, head)
        pull = head @ penalty
        return (loss + (pull * head).sum() / 2).item(), (gradient + pull).cpu().numpy().ravel()

    options = {"maxiter": steps, "maxcor": 20, "gtol": tolerance, "ftol": 1e-15}
    found = minimize(objective, start.cpu().numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).to(inputs.device).view(start.shape), found.status != _STEPS_ARE_OVER


def _curvature_root(inputs: Tensor, head: Tensor, penalty: Tensor) -> Tensor:
    """L of L L^T = mean over images and classes of p (1 - p) x x^T, plus the penalty: (D, D), lower.

    The objective's curvature at ``head``, its classes taken as one. Where inputs x and heads are written in the basis
    L^-1 it is about the same in all directions, and L-BFGS takes a third to a fifth of the steps; from a start at zero
    it would be none where classes can be told apart, whose optimum is far.
    """
    total = torch.diag(penalty)
    for rows in _row_blocks(inputs):
        shares = (rows @ head.T).softmax(dim=1)
        total += (rows * (shares * (1 - shares)).mean(dim=1, keepdim=True)).T @ rows / len(inputs)
    total.diagonal().add_(1e-8 * total.diagonal().mean())  # above rounding, for features that say the same
    root: Tensor = torch.linalg.cholesky(total)
    return root


def _row_blocks(inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.split(inputs, max(1, _BLOCK_CELLS // inputs.shape[1]))


def linear_sgd(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> Scores:
    """MoCo's and MSF's head: ``_sgd`` on normalised, standardised features float32 (N, D); ``labels`` int64 (N,)."""
    standardise = standardiser(features)
    return _logits(_sgd(standardise(features), labels, num_classes, seed, "linear_sgd"), standardise)


def linear_on_map(features: Tensor, labels: Tensor, num_classes: int, seed: int, name: str) -> Scores:
    """Jigsaw's head on one layer: ``_sgd`` on features float32 (N, D) as they are; draws from the stream ``name``.

    NOTE: RotNet's heads differ (BatchNorm without scale, Nesterov, batch 32, rates by look-up); Jigsaw's serve both.
    """
    return _logits(_sgd(features, labels, num_classes, seed, name))


def _sgd(inputs: Tensor, labels: Tensor, num_classes: int, seed: int, name: str) -> Tensor:
    """SGD of rate 0.01, momentum 0.9, decay 1e-4, batch 256, 40 epochs, rate x0.1 after 15 and 30; a head (C, D + 1).

    Upstream's third drop, after epoch 40 of 40, trains nothing.
    """
    head, generator = _fresh_head(inputs, num_classes, seed, name)
    velocity = torch.zeros_like(head)
    for epoch in range(_SGD_EPOCHS):
        lr = 0.01 * 0.1 ** sum(epoch >= milestone for milestone in _SGD_MILESTONES)
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for batch in torch.split(order, _SGD_BATCH):
            _, gradient = _cross_entropy(_with_ones(inputs[batch]), labels[batch], head)
            velocity.mul_(0.9).add_(gradient).add_(head, alpha=1e-4)
            head.sub_(velocity, alpha=lr)
    return head


def linear_adam(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> Scores:
    """BYOL's head: Adam, decay 5e-6, 500 epochs, rate 1e-2 to 1e-6 exponentially by epoch; features not normalised.

    Batches of 1,000. As upstream's loader drops the last one while it caches the features, what is over the largest
    multiple of 1,000 images is never seen: which images those are is drawn once. With fewer than 1,000, all are one
    batch (NOTE: upstream stops there). Draws come from the stream "linear_adam".

    ``features`` float32 (N, D), ``labels`` int64 (N,).
    """
    head, generator = _fresh_head(features, num_classes, seed, "linear_adam")
    n = len(features)
    kept = torch.randperm(n, generator=generator)[: n - n % _ADAM_BATCH or n]
    mean, square, step = torch.zeros_like(head), torch.zeros_like(head), 0
    start, end = _ADAM_LR
    for epoch in range(_ADAM_EPOCHS):
        lr = start * (end / start) ** (epoch / _ADAM_EPOCHS)
        order = kept[torch.randperm(len(kept), generator=generator)].to(features.device)
        for batch in torch.split(order, _ADAM_BATCH):
            step += 1
            _, gradient = _cross_entropy(_with_ones(features[batch]), labels[batch], head)
            gradient.add_(head, alpha=5e-6)
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient.square(), 0.001)
            spread = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
            head.addcdiv_(mean, spread, value=-lr / (1 - 0.9**step))
    return _logits(head)


def _fresh_head(inputs: Tensor, num_classes: int, seed: int, name: str) -> tuple[Tensor, torch.Generator]:
    """Weights and bias (C, D + 1) as torch's Linear draws them, and the generator of stream ``name``."""
    generator, bound = torch_generator(seed, name), inputs.shape[1] ** -0.5
    head = torch.empty(num_classes, inputs.shape[1] + 1).uniform_(-bound, bound, generator=generator)
    return head.to(inputs.device), generator


def _with_ones(inputs: Tensor) -> Tensor:
    """``inputs`` (N, D) with a column of ones, so that a head (C, D + 1) holds weights and bias."""
    return F.pad(inputs, (0, 1), value=1.0)


def _cross_entropy(inputs: Tensor, labels: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy, scalar, of softmax(inputs head^T) and its gradient (C, D + 1) in ``head``.

    By hand: building torch's first optimiser of a process imports its compiler, which takes longer than all probes.
    """
    log_share = F.log_softmax(inputs @ head.T, dim=1)
    error = log_share.exp()
    error[torch.arange(len(labels), device=labels.device), labels] -= 1.0
    return F.nll_loss(log_share, labels), error.T @ inputs / len(inputs)


def _logits(head: Tensor, standardise: Standardiser | None = None) -> Scores:
    return lambda features: _with_ones(standardise(features) if standardise else features) @ head.T
