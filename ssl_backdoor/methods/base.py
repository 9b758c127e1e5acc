"""The interface of a self-supervised method: networks and loss of one paper, nothing about how they are trained."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.build import Backbone, build_backbone
from ssl_backdoor.methods.clip_towers import TextTower
from ssl_backdoor.specs import TrainSpec


class Mix(NamedTuple):
    """Views that show parts of two images each, see ``train.cutmix``."""

    views: tuple[Tensor, ...]
    """In place of the batch's, where a view is a query."""
    share: float
    """Of each image's own part in [0, 1]; the rest is its partner's."""
    partner: Tensor
    """(B,) int64, a row of the same batch."""


class Batch(NamedTuple):
    """One step's images as one replica sees them."""

    views: tuple[Tensor, ...]
    """Random views of the same images, in the same order: each (B, 3, S, S) float32, ImageNet-normalised."""
    step: int = 0
    """Index of the step from 0; names the step's random streams."""
    tokens: Tensor | None = None
    """(B, L) int64, one caption of each image; None for methods that read none."""
    epoch: int = 0
    """Index of the step's epoch from 0."""
    mix: Mix | None = None
    """Mixed views, where a training has them."""


class LossOutput(NamedTuple):
    """The loss of one batch and scalars to log."""

    loss: Tensor
    """Scalar float32, the mean over the batch, with gradient."""
    logs: dict[str, Tensor]
    """Further scalars to plot, detached."""


class Replicas(abc.ABC):
    """The processes that train one network together, each on its contiguous share of the global batch.

    A method calls only the gathers and ``all_to_all_rows``; the rest is the loop's. The implementation over
    ``torch.distributed`` is in ``train/collectives.py``.
    """

    count: int
    index: int

    @abc.abstractmethod
    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows (B, ...) of all replicas, (count * B, ...), in replica order, without gradient."""

    @abc.abstractmethod
    def all_gather_with_grad(self, rows: Tensor) -> Tensor:
        """``all_gather``, but gradients flow back to ``rows`` from the losses of all replicas, summed.

        Averaged over the replicas, as the loop does, gradients are then those of one replica with the whole batch.
        Every replica must run a backward pass through the result once for each call.
        """

    @abc.abstractmethod
    def all_to_all_rows(self, rows: Tensor, order: Tensor) -> Tensor:
        """This replica's part of ``all_gather(rows)[order]``, (B, ...); each row is sent to one replica only.

        Args:
            rows: (B, ...), without gradient.
            order: (count * B,) int64 on the CPU, a permutation that is equal on all replicas.
        """

    @abc.abstractmethod
    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the replicas, in place."""

    @abc.abstractmethod
    def broadcast_bytes(self, data: bytes) -> bytes:
        """Replica 0's ``data``; what the others pass is ignored."""

    def slice(self, global_size: int) -> slice:
        """This replica's part of ``global_size`` rows."""
        size = global_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


@final
class SingleProcess(Replicas):
    """One process: every collective is the identity."""

    count = 1
    index = 0

    def all_gather(self, rows: Tensor) -> Tensor:
        """``rows`` themselves."""
        return rows.detach()

    def all_gather_with_grad(self, rows: Tensor) -> Tensor:
        """``rows`` themselves."""
        return rows

    def all_to_all_rows(self, rows: Tensor, order: Tensor) -> Tensor:
        """``rows`` in that order."""
        return rows.detach()[order.to(rows.device)]

    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def broadcast_bytes(self, data: bytes) -> bytes:
        """``data`` itself."""
        return data


class SSLMethod(nn.Module, abc.ABC):
    """Networks and loss of one paper. Owns its EMA copy and queue; knows no optimiser, device or logger.

    Concrete classes are final. Parameters with ``requires_grad`` are what the loop optimises; everything that must
    survive a restart is a parameter or a buffer.
    """

    backbone: Backbone
    """What is probed, distilled and published: images (B, 3, S, S) to features (B, ``feature_dim``)."""
    num_views: int

    @classmethod
    def build(cls, train: TrainSpec, seed: int, replicas: Replicas | None = None) -> "SSLMethod":
        """The method of ``train`` on the CPU, with fresh networks that are equal on every replica.

        As it stands here, of a method that is made as ``cls(train.method, backbone, seed, replicas)``.
        """
        replicas = replicas or SingleProcess()
        make: Any = cls
        built: SSLMethod = make(train.method, cls.fresh_backbone(train, seed, replicas), seed, replicas)
        return built

    @staticmethod
    def fresh_backbone(train: TrainSpec, seed: int, replicas: Replicas) -> Any:
        """The backbone of ``train``, with the BatchNorm groups of one replica."""
        return build_backbone(train.backbone, train.fit.bn_groups // replicas.count, seed)

    @property
    def supports_cuda_graph(self) -> bool:
        """Whether ``loss`` can be captured as a CUDA graph: the same kernels each step, no work on the host."""
        return False

    @property
    def text_tower(self) -> TextTower | None:
        """Tokenizes captions, and is published next to the backbone; None: captions are not read."""
        return None

    @abc.abstractmethod
    def loss(self, batch: Batch) -> LossOutput:
        """The loss of ``batch``; changes nothing but BatchNorm's running statistics.

        Raises:
            SpecError: The batch does not hold ``num_views`` views of equally many images, or lacks captions that
                the method reads.
        """

    @abc.abstractmethod
    def after_step(self, progress: float) -> None:
        """Called after the optimiser's step: updates EMA copies and queues.

        Args:
            progress: Steps done before this one over all steps, in [0, 1).
        """


def views_of(batch: Batch, num_views: int) -> tuple[Tensor, ...]:
    """The views of ``batch``, checked.

    Raises:
        SpecError: Their number is not ``num_views``, or they do not hold equally many images.
    """
    sizes = [len(view) for view in batch.views]
    if len(sizes) != num_views or len(set(sizes)) != 1:
        raise SpecError(
            f"expected {num_views} view(s) of one batch of images, found views of {sizes} images; "
            "make each view from the same images"
        )
    return batch.views


def queries_of(batch: Batch, num_views: int) -> tuple[Tensor, ...]:
    """The views of ``batch`` as queries: mixed where a training mixes them; errors as ``views_of``."""
    views = views_of(batch, num_views)
    return views if batch.mix is None else batch.mix.views


def pull(batch: Batch, loss: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """``loss(target)``; of mixed queries its mean with that of the partners' targets, weighted by their shares.

    ``target`` (B, ...) is of the batch's rows; ``loss`` is the mean over its rows.
    """
    if batch.mix is None:
        return loss(target)
    own, other = loss(target), loss(target[batch.mix.partner])
    return batch.mix.share * own + (1 - batch.mix.share) * other


def tokens_of(batch: Batch) -> Tensor:
    """The captions of ``batch``, (B, L) int64, checked.

    Raises:
        SpecError: There are none, or not one for each image.
    """
    size, found = len(batch.views[0]), None if batch.tokens is None else len(batch.tokens)
    if batch.tokens is None or found != size:
        raise SpecError(f"expected a caption for each of {size} images, found {found or 'none'}; give batch.tokens")
    return batch.tokens
