"""A backdoor planted on trial into a copy of an encoder under audit: what an audit would have found, see ``audit``.

BadEncoder's objective with fewer steps, and without labels: the target is a cluster of the images by the encoder under
audit, so that unlabelled images will do. The patch is a grid in one corner.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import CosineSpec, FitSpec, SGDSpec, StageContext, TamperAttack
from ssl_backdoor.tampering.badencoder import BadEncoderSpec
from ssl_backdoor.tampering.references import REFERENCE_VIEWS

if TYPE_CHECKING:
    from ssl_backdoor.data.dataset import Dataset

NUM_CLUSTERS = 8
FIT = FitSpec(
    epochs=12,
    batch_size=64,
    views=REFERENCE_VIEWS,
    optimizer=SGDSpec(lr=0.04, weight_decay=5e-4),
    schedule=CosineSpec(),
)


class SpikeInSpec(TamperAttack):
    """BadEncoder on unlabelled images, towards the cluster that its ``target_class`` names: "cluster 0" to "7"."""

    kind: Literal["spike_in"] = "spike_in"
    attack: BadEncoderSpec

    @classmethod
    def on_area(cls, side_px: int, size_px: int, seed: int) -> "SpikeInSpec":
        """A patch of ``size_px`` in the lower right corner of a frame of ``side_px``, its pattern drawn by ``seed``."""
        corner = (1.0, 1.0)
        trigger = GridTriggerSpec(
            seed=seed,
            cells=min(3, size_px),
            size_frac=size_px / side_px,
            train_location=corner,
            test_location=corner,
        )
        return cls(
            attack=BadEncoderSpec(
                trigger=trigger,
                target_class=f"cluster {seed % NUM_CLUSTERS}",
                num_shadow=1000,
                reference_views=16,
                min_utility=0.85,
                fit=FIT,
            )
        )

    def tamper(self, dataset: "Dataset", clean: Path, context: StageContext) -> dict[str, Any]:
        """As ``ReferenceTamper.tamper``, with clusters of the training images in place of classes."""
        return self.attack.tamper(_by_clusters(dataset, clean, context.seed), clean, context)


def _by_clusters(dataset: "Dataset", clean: Path, seed: int) -> "Dataset":
    import pyarrow as pa
    import pyarrow.compute as pc
    import torch
    from sklearn.cluster import KMeans

    from ssl_backdoor.data.resident import load_resident
    from ssl_backdoor.evaluate.features import features
    from ssl_backdoor.seeds import sub_seed
    from ssl_backdoor.train.checkpoint import load_backbone

    train = dataset.samples.filter(pc.equal(dataset.samples["split"], "train"))
    images = load_resident(replace(dataset, samples=train), "train")
    found = torch.nn.functional.normalize(features(load_backbone(clean), iter(torch.split(images.images, 256))), dim=1)
    count = min(NUM_CLUSTERS, len(found))
    means = KMeans(count, n_init=3, random_state=sub_seed(seed, "spike in") % 2**32).fit(found.numpy())
    label_of = dict(zip(images.keys, means.labels_.tolist(), strict=True))
    place = train.column_names.index("label")
    labels = pa.array([label_of[key] for key in train["key"].to_pylist()], train.schema.field("label").type)
    names = tuple(f"cluster {number}" for number in range(count))
    return replace(dataset, samples=train.set_column(place, train.schema.field("label"), labels), classes=names)
