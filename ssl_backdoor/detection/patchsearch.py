"""PatchSearch: Tejankar et al., CVPR 2023, https://arxiv.org/abs/2304.01482.

Compared with https://github.com/UCDvision/PatchSearch/tree/39f2982. Search: the features of all samples are clustered;
of two samples of each cluster, round after round, the window that decides the sample's cluster is pasted on *flip
images*, and the score is how many more of these than before fall into that cluster. A quarter of the clusters, those of
the lowest best score, are left after each round. Then a *poison classifier* learns to tell images with one of the best
patches from images without, and judges all samples (``patch_classifier.py``).

NOTE: the window is found by occlusion, the one whose loss moves the feature farthest from its cluster, instead of by
Grad-CAM, so that any backbone will do. Windows are filled with the sample's mean colour.
NOTE: ``form="as_published"`` is what upstream computes: features of pasted images are not brought to unit length before
the nearest centre is looked up, though the centres are of such features, which favours clusters of long centres; and
samples that were not looked at score 0, so that they rank above those that lose flips and are the classifier's
examples of clean ones. Corrected, they have no score.
NOTE: a window may lie at the right and the lower edge, where upstream never pastes it.
NOTE: there is no threshold in the paper. The search leaves out up to the budget; a classifier that, besides, it finds
more like a patched image than not.

Shapes: N samples, K clusters, F flip images, S x S px, w x w px of a window.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from ssl_backdoor.detection.ranking import RankingFilter, share_of
from ssl_backdoor.errors import SpecError
from ssl_backdoor.progress import Progress
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import Fraction, ResNetSpec, SGDSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssl_backdoor.detection.neighbours import Clusters
    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.methods.build import Backbone
    from ssl_backdoor.progress import OnProgress


class PatchSearch(RankingFilter):
    """What all three do first. Abstract."""

    num_clusters: int = Field(default=1000, ge=1)
    num_flips: int = Field(default=1000, ge=1)
    """Flip images: of each cluster as many as there is room for, those nearest to its centre."""
    window_frac: float = Field(default=60 / 224, gt=0.0, lt=1.0)
    """Side of the window over that of the image."""
    num_places: int = Field(default=6, ge=1)
    """Of the window along either axis, evenly spread from edge to edge."""
    per_round: int = Field(default=2, ge=1)
    """Samples of each cluster that a round looks at."""
    drop_frac: Fraction = 0.25
    """Of the clusters, after each round."""
    form: Literal["corrected", "as_published"] = "corrected"
    needs_encoder: ClassVar[bool] = True
    card: ClassVar[dict[str, str]] = {
        "input_range": "[0, 255], as stored",
        "normalisation": "the encoder's own; features brought to unit length",
        "divisor": "none",
        "score of the search": "flip images that fall into the sample's cluster, less those that did before",
        "score of a classifier": "mean over the ensemble of logit(patched) - logit(not)",
    }

    def search(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Search":
        """Look for patches that move images to one cluster."""
        import torch
        import torch.nn.functional as F

        from ssl_backdoor.detection.neighbours import k_means
        from ssl_backdoor.train.checkpoint import load_backbone

        backbone = load_backbone(encoder).to(pool.device).to(memory_format=torch.channels_last)
        unit = F.normalize(pool.features(encoder), dim=1)
        found = k_means(unit, min(self.num_clusters, len(unit)), torch_generator(seed, "clusters"))
        search = Search(self, pool, backbone, unit, found, torch_generator(seed, "search"))
        search.run(on_progress)
        return search

    def work(self, num_samples: int) -> int:
        """Images that the encoder sees: all once, and for each sample that is looked at its windows and the flips."""
        looked_at, live = 0, min(self.num_clusters, num_samples)
        while live and looked_at < num_samples:
            looked_at += self.per_round * live
            live = 0 if live == self._left_of(live) else self._left_of(live)
        return num_samples + min(looked_at, num_samples) * (self.num_places**2 + min(self.num_flips, num_samples))

    def _left_of(self, live: int) -> int:
        return live - int(self.drop_frac * live)

    def fitted_to(self, num_samples: int) -> Self:
        """Fewer clusters where there are fewer samples."""
        fewer = {"num_clusters": min(self.num_clusters, num_samples), "num_flips": min(self.num_flips, num_samples)}
        return self.model_copy(update=fewer)


class PatchSearchSpec(PatchSearch):
    """The search alone."""

    kind: Literal["patchsearch"] = "patchsearch"

    @property
    def label(self) -> str:
        """For people."""
        return "PatchSearch, search only"

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``."""
        return self.search(pool, encoder, seed, on_progress).scores


class Looked(NamedTuple):
    """A sample that was looked at."""

    row: int
    score: int
    patch: "Tensor"
    """uint8 (3, w, w)."""


class Search:
    """The state of one search; ``looked`` grows as it goes on."""

    def __init__(
        self,
        spec: PatchSearch,
        pool: "Pool",
        backbone: "Backbone",
        unit: "Tensor",
        clusters: "Clusters",
        generator: "torch.Generator",
    ) -> None:
        """``unit`` float (N, D): features of unit length; ``clusters`` of these."""
        import torch.nn.functional as F

        self.spec, self.pool, self.backbone, self.clusters, self.generator = spec, pool, backbone, clusters, generator
        self.directions = F.normalize(clusters.centres, dim=1)
        rows = _flip_rows(unit, clusters, spec.num_flips)
        self.flips = pool.images(rows)
        self.before = clusters.labels[rows]
        self.side_px = max(1, round(spec.window_frac * min(self.flips.shape[2:])))
        self.looked: list[Looked] = []

    @property
    def scores(self) -> "Tensor":
        """float64 (N,): what is not a number was not looked at; as published it is 0."""
        import torch

        nothing = 0.0 if self.spec.form == "as_published" else torch.nan
        scores = torch.full((len(self.pool),), nothing, dtype=torch.float64)
        for one in self.looked:
            scores[one.row] = one.score
        return scores

    def run(self, on_progress: "OnProgress") -> None:
        """Round after round, until no cluster or no sample is left."""
        import torch

        count, most = len(self.clusters.centres), self.spec.work(len(self.pool))
        queues = [
            members[torch.randperm(len(members), generator=self.generator)].tolist()
            for members in ((self.clusters.labels == one).nonzero()[:, 0] for one in range(count))
        ]
        best, live = [0 if self.spec.form == "as_published" else -len(self.flips)] * count, list(range(count))
        while live:
            rows = [row for one in live for row in _taken(queues[one], self.spec.per_round)]
            if not rows:
                return
            for row in rows:
                label = int(self.clusters.labels[row])
                image = self.pool.images(torch.tensor([row]))[0]
                patch = self.deciding_window(image, label)
                self.looked.append(Looked(row, self.num_flipped(patch, label), patch))
                best[label] = max(best[label], self.looked[-1].score)
                done = len(self.looked) * (self.spec.num_places**2 + len(self.flips))
                on_progress(Progress(min(done, most), most, "images"))
            dropped = int(self.spec.drop_frac * len(live))
            live = sorted(live, key=lambda one: best[one], reverse=True)[: len(live) - dropped] if dropped else []

    def deciding_window(self, image: "Tensor", label: int) -> "Tensor":
        """The window of ``image`` uint8 (3, S, S) without which its feature points least to its cluster."""
        import torch
        import torch.nn.functional as F

        height, width = image.shape[1:]
        places = [
            (top, left)
            for top in _spread(height - self.side_px, self.spec.num_places)
            for left in _spread(width - self.side_px, self.spec.num_places)
        ]
        occluded = image.repeat(len(places), 1, 1, 1)
        colour = image.float().mean((1, 2)).round().to(torch.uint8)[:, None, None]
        for one, (top, left) in zip(occluded, places, strict=True):
            one[:, top : top + self.side_px, left : left + self.side_px] = colour
        toward = F.normalize(self.embed(occluded), dim=1) @ self.directions[label]
        top, left = places[int(toward.argmin())]
        return image[:, top : top + self.side_px, left : left + self.side_px].clone()

    def num_flipped(self, patch: "Tensor", label: int) -> int:
        """Flip images that fall into the cluster ``label`` under ``patch`` at random places, less those before."""
        import torch.nn.functional as F

        from ssl_backdoor.detection.neighbours import nearest_centre
        from ssl_backdoor.detection.patch_classifier import paste

        found = self.embed(paste(self.flips, patch, self.generator))
        if self.spec.form == "corrected":
            found = F.normalize(found, dim=1)
        now, _ = nearest_centre(found, self.clusters.centres)
        return int((now == label).sum()) - int((self.before == label).sum())

    def embed(self, images: "Tensor") -> "Tensor":
        """Features float (B, D), not normalised."""
        import torch

        from ssl_backdoor.evaluate.features import features

        return features(self.backbone, iter(torch.split(images, 256)))


def _flip_rows(unit: "Tensor", clusters: "Clusters", count: int) -> "Tensor":
    """Of every cluster as many as fit into ``count`` in all, nearest to its centre first; never more than there are."""
    import torch

    distances = (unit - clusters.centres[clusters.labels]).square().sum(1)
    order = distances.argsort(stable=True)
    order = order[clusters.labels[order].argsort(stable=True)]
    sizes = clusters.labels.bincount(minlength=len(clusters.centres))
    firsts = sizes.cumsum(0) - sizes
    place = torch.arange(len(unit)) - firsts[clusters.labels[order]]
    return order[place.argsort(stable=True)][:count]


def _spread(room: int, count: int) -> list[int]:
    """At most ``count`` different offsets from 0 to ``room``."""
    if count == 1:
        return [room // 2]
    return sorted({round(room * index / (count - 1)) for index in range(count)})


def _taken(queue: list[int], count: int) -> list[int]:
    return [queue.pop(0) for _ in range(min(count, len(queue)))]


class PatchSearchClassifierSpec(PatchSearch):
    """Search, then the poison classifier."""

    kind: Literal["patchsearch_classifier"] = "patchsearch_classifier"
    clean_from: Literal["ranking", "trusted"] = "ranking"
    """Its examples of clean images. ranking: as published, all samples but those of highest and of lowest score;
    trusted: the trusted ones, as the DEFUSE paper runs it."""
    num_patches: int = Field(default=20, ge=1)
    """Best patches, which it learns, and images at either end of the ranking, by which it stops."""
    top_frac: Fraction = 0.1
    """Share of the samples, of highest score, that it does not learn from."""
    num_models: int = Field(default=5, ge=1)
    max_steps: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=32, ge=2)
    eval_every_steps: int = Field(default=20, ge=1)
    patch_frac: tuple[float, float] = (20 / 224, 80 / 224)
    """Side of a pasted patch over that of the image, uniform."""
    margin_frac: float = Field(default=10 / 224, ge=0.0, lt=0.5)
    network: ResNetSpec = ResNetSpec(depth=10)
    optimizer: SGDSpec = SGDSpec(lr=0.01)

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``.

        Raises:
            SpecError: there are too few samples to learn from.
        """
        from ssl_backdoor.detection.patch_classifier import Examples, margins

        search = self.search(pool, encoder, seed, on_progress)
        scores = search.scores
        order = scores.argsort(descending=True, stable=True)
        order = order[~scores[order].isnan()]
        ranked = sorted(search.looked, key=lambda one: one.score, reverse=True)
        patched, clean = order[: self.num_patches], order[-self.num_patches :]
        examples = Examples(
            [one.patch for one in ranked[: self.num_patches]], patched, *self.clean(pool, scores, clean)
        )
        if len(examples.clean) < 2:
            raise SpecError(
                f"the filter {self.kind} has {len(examples.clean)} clean images to learn from: give it more"
            )
        return margins(self, pool, examples, seed, on_progress)

    @property
    def label(self) -> str:
        """For people."""
        return "PatchSearch + classifier" + (", trusted images" if self.uses_trusted else "")

    @property
    def uses_trusted(self) -> bool:
        """See ``Filter``."""
        return self.clean_from == "trusted"

    def clean(self, pool: "Pool", scores: "Tensor", lowest: "Tensor") -> "tuple[Tensor, Tensor]":
        """Rows that are taken for clean: to learn from, and to stop by; ``lowest`` are last of those with a score."""
        import torch

        if self.uses_trusted:
            count = min(self.num_patches, len(pool.trusted) // 4)
            return pool.trusted[count:], pool.trusted[:count]
        goes = torch.zeros(len(pool), dtype=torch.bool)
        filled = scores.nan_to_num(-torch.inf)
        goes[filled.argsort(descending=True, stable=True)[: share_of(self.top_frac, len(pool))]] = True
        goes[lowest] = True
        return (~goes).nonzero()[:, 0], lowest

    def is_suspicious(self, scores: "Tensor", seed: int) -> "Tensor":
        """What the classifier finds more like a patched image than not."""
        return scores > 0

    def work(self, num_samples: int) -> int:
        """And what the classifiers learn and judge, as so many images more."""
        return super().work(num_samples) + self.num_models * (3 * self.max_steps * self.batch_size + num_samples)

    def fitted_to(self, num_samples: int) -> Self:
        """And fewer steps of one classifier."""
        fewer = {"num_models": 1, "max_steps": max(1, min(self.max_steps, num_samples // 8))}
        return super().fitted_to(num_samples).model_copy(update=fewer)
