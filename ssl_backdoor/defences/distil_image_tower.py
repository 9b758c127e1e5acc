"""Distillation of a CLIP image tower (TinyCLIP's affinities); the objective is ``methods/distil_image_tower.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import AdamWSpec, CosineSpec, FitSpec, Repair, StageContext

if TYPE_CHECKING:
    from ssl_backdoor.data.dataset import Dataset


class DistilImageTowerSpec(Repair):
    """CLIP: a fresh image tower learns the suspect's image-to-caption similarities on trusted pairs.

    The text tower is the suspect's, frozen, so that zero-shot classification still works.
    """

    kind: Literal["distil_image_tower"] = "distil_image_tower"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    fit: FitSpec = FitSpec(epochs=30, batch_size=1024, optimizer=AdamWSpec(), schedule=CosineSpec(per="step"))
    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "distilled image tower"

    def repair(self, dataset: "Dataset", suspect: Path, context: StageContext) -> dict[str, Any]:
        """Distil the suspect's image tower into a fresh one on the trusted pairs of ``dataset``, the clean base data.

        As ``Repair.repair``; ``suspect`` and ``out`` hold a text tower too, which goes from one to the other unchanged.

        Raises:
            DataError: A trusted image has no caption; this and the other errors also as ``pretrain``.
            CheckpointError: The suspect cannot be read.
            SpecError: There are fewer trusted images than one batch.
        """
        import torch

        from ssl_backdoor.defences.towers import load_towers
        from ssl_backdoor.defences.trusted import open_trusted
        from ssl_backdoor.methods.base import Replicas, SSLMethod
        from ssl_backdoor.methods.clip_towers import build_towers
        from ssl_backdoor.methods.distil_image_tower import DistilImageTower
        from ssl_backdoor.train.pretrain import check_workers, train_backbone
        from ssl_backdoor.train.training_set import load_training_set

        out, seed, resources, checkpoints, on_progress = context
        check_workers(self.fit, resources)
        teacher, text = load_towers(suspect, self.kind)
        trusted = open_trusted(dataset, self.trusted_fraction, seed, self.fit.batch_size)
        data = load_training_set(trusted.dataset, None, resources, on_progress)
        fit_seed = sub_seed(seed, self.kind)

        def build(replicas: Replicas, device: torch.device) -> SSLMethod:
            student = build_towers(teacher.spec, fit_seed, "student", self.fit.bn_groups // replicas.count)[0]
            on_device = teacher.to(device).to(memory_format=torch.channels_last)
            return DistilImageTower(on_device, text.to(device), student, replicas)

        tables = {"trusted.parquet": trusted.table}
        summary = train_backbone(build, data, self.fit, out, fit_seed, resources, checkpoints, on_progress, tables)
        return {**summary, "num_trusted": trusted.table.num_rows}
