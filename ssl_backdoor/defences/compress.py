"""CompRess (Koohpayegani et al. 2020) as the defence of Saha et al. 2022; the objective is ``methods/compress.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.errors import SpecError
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import FitSpec, MilestonesSpec, Repair, SGDSpec, StageContext, ViewsSpec

if TYPE_CHECKING:
    from ssl_backdoor.data.dataset import Dataset


class CompressSpec(Repair):
    """CompRess distillation of the suspect into a fresh student of the same architecture, on trusted images."""

    kind: Literal["compress"] = "compress"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    """Share of the clean training images, of each class, that the defender may use."""
    temperature: float = Field(default=0.04, gt=0.0)
    queue_size: int = Field(default=128_000, ge=1, le=2**21)
    num_queues: Literal[1, 2] = 2
    """2: a teacher and a student queue, the latter filled by a slow copy of the student; 1: the teacher's for both."""
    ema_decay: float = Field(default=0.999, ge=0.0, le=1.0)
    fit: FitSpec = FitSpec(
        epochs=130,
        views=ViewsSpec(crop_scale=(0.08, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),
        optimizer=SGDSpec(lr=0.01),
        schedule=MilestonesSpec(milestones=(90, 120), factor=0.2),
    )
    loses_text_tower: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "CompRess"

    def repair(self, dataset: "Dataset", suspect: Path, context: StageContext) -> dict[str, Any]:
        """Distil the suspect into a fresh student on the trusted part of ``dataset``, the clean base images.

        Args:
            dataset: The ingested images; there is no overlay here.
            suspect: Folder with ``backbone.safetensors`` and ``backbone.json``; read, never written.
            context: See ``StageContext``; ``trusted.parquet`` is left as well.

        Returns:
            What ``pretrain`` returns, and ``num_trusted``.

        Raises:
            CheckpointError: The suspect cannot be read.
            SpecError: There are fewer trusted images than one batch, or the suspect is a CLIP model; this and the other
                errors also as ``pretrain``.
        """
        import torch

        from ssl_backdoor.defences.trusted import open_trusted
        from ssl_backdoor.methods.base import Replicas, SSLMethod
        from ssl_backdoor.methods.build import build_backbone
        from ssl_backdoor.methods.clip_towers import ImageTower
        from ssl_backdoor.methods.compress import CompRess
        from ssl_backdoor.train.checkpoint import load_backbone
        from ssl_backdoor.train.pretrain import check_workers, train_backbone
        from ssl_backdoor.train.training_set import load_training_set

        out, seed, resources, checkpoints, on_progress = context
        check_workers(self.fit, resources)
        teacher = load_backbone(suspect)
        if isinstance(teacher, ImageTower):
            raise SpecError(
                "compress would part the image tower of a CLIP model from its captions, and zero-shot classification "
                "would be lost: use distil_image_tower or cleanclip"
            )
        trusted = open_trusted(dataset, self.trusted_fraction, seed, self.fit.batch_size)
        data = load_training_set(trusted.dataset, None, resources, on_progress)

        def build(replicas: Replicas, device: torch.device) -> SSLMethod:
            student = build_backbone(teacher.spec, self.fit.bn_groups // replicas.count, fit_seed, "student")
            on_device = teacher.to(device).to(memory_format=torch.channels_last)
            return CompRess(self, on_device, student, fit_seed, replicas)

        fit_seed = sub_seed(seed, "compress")
        tables = {"trusted.parquet": trusted.table}
        summary = train_backbone(build, data, self.fit, out, fit_seed, resources, checkpoints, on_progress, tables)
        return {**summary, "num_trusted": trusted.table.num_rows}
