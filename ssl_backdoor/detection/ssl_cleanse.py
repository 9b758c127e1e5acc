"""SSL-Cleanse (Zheng et al. 2024), https://arxiv.org/abs/2303.09079: the smallest trigger that leads to each cluster.

The clean images' features are put into clusters by k-means. Of each cluster a mask m and a pattern d are searched for,
see ``inversion.Variables``:

    minimise mean |f(x') - f(r)|^2 / D + w mean(m),   x' = (1 - m) x + m d,   r random images of the cluster

with unit features f of D dimensions. w begins at 0, becomes 0.1 after 5 successful steps, then grows by 1.5 after each
successful one and falls by 1.5 after each other one. A step is successful where the nearest clean image of 99 % of the
batch under the trigger is one of the cluster. The cluster's size is the smallest mean(m) of a successful step.

    score = (median of all sizes - smallest) / (1.4826 median |size - median|)

NOTE: published is w mean(m d): a black pattern then costs nothing, whatever it covers. Here the mask alone costs.
NOTE: published is |smallest - median| / (1.4826 MAD / 0.6745). Both factors are the same correction (0.6745 = 1 /
1.4826), applied twice, and the index is two-sided, so that a cluster that is hard to reach raises it as well.
``index="as_published"`` is that form, over every cluster.
NOTE: published is a threshold of 2, which the largest of ten indices passes often by chance; here siblings are the null
(``RunSpec.siblings``).
NOTE: published chooses the number of clusters by a criterion over a sliding window; here it is a field.
NOTE: a trigger has to lead there on images that were not searched on, half of them at least; else the cluster's size is
that of the whole image. Where no cluster has one the score is "not found".
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from ssl_backdoor.specs.detector import Detector, Level

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.inversion import Candidate, Encoder
    from ssl_backdoor.detection.pool import Detection, Pool
    from ssl_backdoor.progress import OnProgress

MAD_TO_SD = 1.4826
SUCCESS = 0.99
HELD_OUT_SUCCESS = 0.5


class SSLCleanseSpec(Detector):
    """SSL-Cleanse: is there a cluster that a far smaller trigger leads to than to the others?"""

    kind: Literal["ssl_cleanse"] = "ssl_cleanse"
    level: ClassVar[Level] = "encoder"
    needs_gradients: ClassVar[bool] = True
    num_clusters: int = Field(default=10, ge=3, le=1000)
    steps: int = Field(default=200, ge=1)
    """Of each cluster."""
    num_images: int = Field(default=500, ge=2)
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=0.1, gt=0.0)
    index: Literal["corrected", "as_published"] = "corrected"

    @property
    def label(self) -> str:
        """For people."""
        return "SSL-Cleanse"

    @property
    def reduced(self) -> tuple[Self, float]:
        """A few steps of each cluster."""
        steps = min(self.steps, 5)
        return self.model_copy(update={"steps": steps}), self.steps / steps

    def detect(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Detection":
        """See ``Detector``."""
        import torch

        from ssl_backdoor.detection import inversion
        from ssl_backdoor.detection.collapse import cluster_centres
        from ssl_backdoor.detection.decree import NULL_OF_SIBLINGS
        from ssl_backdoor.detection.pool import Detection
        from ssl_backdoor.progress import Progress

        images, model = inversion.split(pool, self.num_images, seed, 2), inversion.Encoder(encoder, pool.device)
        clean = model.features(images.search)
        centres = cluster_centres(clean, seed, self.num_clusters)
        cluster_of = (clean @ centres.T).argmax(1)
        sizes = []
        for cluster in range(len(centres)):
            found = self.search(model, images.search, clean, cluster_of == cluster, seed, cluster)
            holds = (
                found is not None
                and reached(model.features(found.on(images.held_out)), clean, cluster_of == cluster) >= HELD_OUT_SUCCESS
            )
            sizes.append(found.area if found is not None and holds else 1.0)
            on_progress(Progress(cluster + 1, len(centres), "clusters"))
        is_found = any(size < 1.0 for size in sizes)
        score = anomaly_index(sizes, self.index) if is_found else float("nan")
        told = inversion.card(images, divisor=f"index {self.index}; sizes are shares of pixels", sizes=sizes)
        return Detection(torch.tensor([score]), None, NULL_OF_SIBLINGS, 0, told)

    def search(
        self, model: "Encoder", images: "Tensor", clean: "Tensor", members: "Tensor", seed: int, cluster: int
    ) -> "Candidate | None":
        """The smallest successful trigger to the images that ``members`` (N,) marks."""
        import torch

        from ssl_backdoor.detection.inversion import Candidate, Variables, batches
        from ssl_backdoor.seeds import torch_generator

        if not bool(members.any()):
            return None
        generator = torch_generator(seed, "ssl_cleanse", cluster)
        variables = Variables(images.shape[-1], self.lr, model.device, generator)
        of_cluster, weight, successes = clean[members], 0.0, 0
        best: Candidate | None = None
        for _, batch in zip(range(self.steps), batches(images, self.batch_size, generator), strict=False):
            mask, pattern = variables.now()
            found = model(batch + mask * (pattern - batch))
            rows = torch.randint(len(of_cluster), (len(batch),), generator=generator).to(images.device)
            with torch.no_grad():
                share = reached(found, clean, members)
            now = Candidate(mask.detach().clone(), pattern.detach().clone(), share)
            if share >= SUCCESS and (best is None or now.area < best.area):
                best = now
            variables.step((found - of_cluster[rows]).square().mean() + weight * mask.mean())
            successes += share >= SUCCESS
            if weight:
                weight = weight * 1.5 if share >= SUCCESS else weight / 1.5
            elif successes >= 5:
                weight = 0.1
        return best


def reached(found: "Tensor", clean: "Tensor", members: "Tensor") -> float:
    """Share of unit features ``found`` (B, D) whose nearest of ``clean`` (N, D) is one that ``members`` (N,) marks."""
    return float(members[(found @ clean.T).argmax(1)].float().mean())


def anomaly_index(sizes: "list[float]", index: str = "corrected") -> float:
    """How far the smallest of ``sizes`` lies below their median, in robust standard deviations; see the module."""
    import numpy as np

    values = np.asarray(sizes, np.float64)
    deviation = values - np.median(values)
    mad = max(float(np.median(np.abs(deviation))), 1e-9)
    if index == "as_published":
        return float(np.abs(deviation).max() / (MAD_TO_SD * mad / 0.6745))
    return float(-deviation.min() / (MAD_TO_SD * mad))
