"""The two classical filters of supervised learning, on the clusters of an encoder's features in place of classes.

Activation clustering: Chen et al. 2018, https://arxiv.org/abs/1811.03728. Spectral signatures: Tran et al. 2018,
https://arxiv.org/abs/1811.00636. Both split by label; self-supervised data have none, so that k-means gives
pseudo-classes. They are the floor that other filters are to beat.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from ssl_backdoor.detection.ranking import RankingFilter
from ssl_backdoor.specs import Fraction

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress


class Clustered(RankingFilter):
    """Scores within each pseudo-class. Abstract."""

    num_clusters: int = Field(default=10, ge=1)
    """Pseudo-classes: as many as there may be classes, or twice that."""
    needs_encoder: ClassVar[bool] = True
    card: ClassVar[dict[str, str]] = {
        "input_range": "[0, 255], as stored",
        "normalisation": "the encoder's own; features not brought to unit length",
        "divisor": "none",
    }

    def _by_cluster(self, features: "Tensor", seed: int, score: "Callable[[Tensor, int], Tensor]") -> "Tensor":
        """``score`` of the features (M, D) of each cluster and its number, put together: float (N,)."""
        import torch

        from ssl_backdoor.detection.neighbours import k_means
        from ssl_backdoor.seeds import torch_generator

        labels = k_means(features, min(self.num_clusters, len(features)), torch_generator(seed, "clusters")).labels
        scores = torch.zeros(len(features), dtype=torch.float64)
        for cluster in range(int(labels.max()) + 1):
            members = labels == cluster
            if members.any():
                scores[members] = score(features[members].double(), cluster)
        return scores

    def fitted_to(self, num_samples: int) -> Self:
        """Fewer clusters where there are fewer samples."""
        return self.model_copy(update={"num_clusters": max(1, min(self.num_clusters, num_samples // 4))})


class SpectralSignaturesSpec(Clustered):
    """Squared projection of the centred features on their first singular direction, within each pseudo-class.

    NOTE: the paper leaves out 1.5 times the expected poisons of each class; here all classes share one budget.
    """

    kind: Literal["spectral_signatures"] = "spectral_signatures"

    @property
    def label(self) -> str:
        """For people."""
        return "spectral signatures"

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``."""
        return self._by_cluster(pool.features(encoder), seed, lambda own, _: self.of_class(own))

    def of_class(self, features: "Tensor") -> "Tensor":
        """Of the members of one pseudo-class (M, D): float64 (M,)."""
        centred = features - features.mean(0)
        return (centred @ principal_directions(centred)[0]).square()


class ActivationClusteringSpec(Clustered):
    """Each pseudo-class is split in two; a small part that is well apart is suspicious.

    NOTE: ten principal components, where the paper has ten independent ones. The paper flags the whole of a part that
    holds less than 35 % of its class; here its members rank by the silhouette of the split times their own, and the
    members of other parts by the negative of that.
    NOTE: silhouettes are simplified: distances to the two centres, not to all members.
    """

    kind: Literal["activation_clustering"] = "activation_clustering"
    num_components: int = Field(default=10, ge=1)
    small_frac: Fraction = 0.35

    @property
    def label(self) -> str:
        """For people."""
        return "activation clustering"

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``."""
        return self._by_cluster(pool.features(encoder), seed, lambda own, cluster: self.of_class(own, seed, cluster))

    def of_class(self, features: "Tensor", seed: int, cluster: int) -> "Tensor":
        """Of the members of one pseudo-class (M, D): float64 (M,) in [-1, 1]."""
        import torch

        from ssl_backdoor.detection.neighbours import k_means
        from ssl_backdoor.seeds import torch_generator

        if len(features) < 2:
            return torch.zeros(len(features), dtype=torch.float64)
        centred = features - features.mean(0)
        components = centred @ principal_directions(centred)[: self.num_components].T
        halves = k_means(components, 2, torch_generator(seed, "halves", cluster))
        apart = torch.cdist(components, halves.centres)
        own, other = (apart.gather(1, side[:, None])[:, 0] for side in (halves.labels, 1 - halves.labels))
        silhouettes = ((other - own) / torch.maximum(own, other)).nan_to_num(0.0)
        sizes = halves.labels.bincount(minlength=2)
        is_small = sizes[halves.labels] < self.small_frac * len(features)
        return torch.where(is_small, 1.0, -1.0) * silhouettes.mean() * silhouettes


def principal_directions(centred: "Tensor") -> "Tensor":
    """Right singular vectors of ``centred`` (M, D), those of larger values first: (D, D), in time that grows with M."""
    import torch

    vectors: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return vectors.flip(1).T
