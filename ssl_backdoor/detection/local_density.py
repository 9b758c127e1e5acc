"""Local density of features: Huang et al., ICLR 2025, https://arxiv.org/abs/2502.01385.

Compared with https://github.com/HanxunH/Detect-CLIP-Backdoor-Samples/tree/024f076/backdoor_sample_detector. A poison is
taken to lie where few others of a random batch are. With d_j(z) the distance of z to its j-th nearest other in the
batch and o_1 ... o_k its k nearest:

    k_dist = d_k(z)
    slof   = mean over o of d_k(z) / d_k(o)
    lid    = -k / sum over j <= k of ln(d_j(z) / d_k(z))
    dao    = mean over o of lid(o) ln(d_k(z) / d_k(o))

NOTE: ``form="as_published"`` is what upstream computes. There the neighbours' places are counted without the sample
itself and used to index a table that has it, so that about half of the o are others; ``a[:, k]`` is the (k+1)-th
neighbour; the sample is its own nearest one in the table; and 1e-4 is added within the logarithm.
NOTE: upstream's batches are those of its loader; here they are consecutive rows of the pool, whose order is random. The
last batch is filled up with rows before it, whose scores stay.

More than k poisons that are alike within one batch are each other's neighbours, and the ranking inverts: k is to exceed
their number in ``reference_size`` samples.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from ssl_backdoor.detection.ranking import RankingFilter
from ssl_backdoor.errors import SpecError
from ssl_backdoor.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.neighbours import Neighbours
    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress


class LocalDensitySpec(RankingFilter):
    """Leaves out what lies where few others do.

    NOTE: upstream looks at 64 neighbours for LID, and at 16 for the others.
    """

    kind: Literal["local_density"] = "local_density"
    measure: Literal["k_dist", "slof", "lid", "dao"] = "dao"
    k: int = Field(default=16, ge=1)
    """Neighbours that are looked at."""
    reference_size: int = Field(default=512, ge=0)
    """Samples among which neighbours are looked for, drawn at random; 0: all."""
    form: Literal["corrected", "as_published"] = "corrected"
    needs_encoder: ClassVar[bool] = True
    card: ClassVar[dict[str, str]] = {
        "input_range": "[0, 255], as stored",
        "normalisation": "the encoder's own; features not brought to unit length",
        "divisor": "the neighbours' own value (SLOF, DAO) or none (k-dist, LID)",
        "distance": "Euclidean",
    }

    @property
    def label(self) -> str:
        """For people."""
        return "k-dist" if self.measure == "k_dist" else self.measure.upper()

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``.

        Raises:
            SpecError: there are not more samples in a batch than neighbours that are looked at.
        """
        import torch

        num, size = len(pool), min(len(pool), self.reference_size or len(pool))
        fewest = self.k + 1 + (self.form == "as_published")
        if size < fewest:
            raise SpecError(
                f"the filter {self.kind} looks at {self.k} neighbours and needs {fewest} samples in a batch, found "
                f"{size}: lower k, or raise reference_size"
            )
        features = pool.features(encoder)
        scores = torch.full((num,), torch.nan, dtype=torch.float64)
        for start in range(0, num, size):
            first = min(start, num - size)
            batch = self.of_batch(features[first : first + size])
            scores[start : first + size] = batch[start - first :]
            on_progress(Progress(first + size, num, "samples"))
        return scores

    def of_batch(self, features: "Tensor") -> "Tensor":
        """Of each of one batch (B, D) among the others: float64 (B,)."""
        from ssl_backdoor.detection.neighbours import nearest_others

        if self.form == "as_published":
            return published(self.measure, features, self.k)
        near = nearest_others(features, self.k)
        match self.measure:
            case "k_dist":
                return near.distances[:, -1]
            case "slof":
                return log_ratio(near).exp().mean(1)
            case "lid":
                return dimension(near.distances)
            case "dao":
                return (dimension(near.distances)[near.rows] * log_ratio(near)).nan_to_num(0.0).mean(1)

    def fitted_to(self, num_samples: int) -> Self:
        """Fewer neighbours where there are fewer samples."""
        return self.model_copy(update={"k": max(1, min(self.k, num_samples // 4))})


def dimension(distances: "Tensor") -> "Tensor":
    """LID of sorted ``distances`` (N, k) to the k nearest: float64 (N,).

    Infinite where all k are equally near, 0 where one is a duplicate.
    """
    import torch

    ratios = distances / distances[:, -1:]  # 0 / 0: k duplicates, of dimension 0
    return (-distances.shape[1] / ratios.nan_to_num(0.0).log().sum(1)).abs().nan_to_num(posinf=torch.inf)


def log_ratio(near: "Neighbours") -> "Tensor":
    """ln(d_k(z) / d_k(o)) of each z and each of its neighbours o: float64 (N, k); 0 where both are 0."""
    own = near.distances[:, -1]
    return (own[:, None].log() - own[near.rows].log()).nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))


def published(measure: str, features: "Tensor", k: int) -> "Tensor":
    """What upstream computes of a batch (B, D): float64 (B,)."""
    import torch

    full = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    others, places = full[~torch.eye(len(full), dtype=torch.bool)].view(len(full), -1).sort(stable=True, dim=1)
    if measure == "k_dist":
        return others[:, k]
    if measure == "lid":
        return _published_dimension(others, k)
    full, places = full.sort(1).values, places[:, :k]
    ratios = others[:, k, None] / full[places, k]
    scores = ratios if measure == "slof" else _published_dimension(full, k)[places] * ratios.log()
    return scores.mean(1).nan_to_num(1000.0, 1000.0, 0.0)


def _published_dimension(distances: "Tensor", k: int) -> "Tensor":
    return -k / (distances[:, :k] / distances[:, k, None] + 1e-4).log().sum(1)
