"""CleanCLIP (Bansal et al. 2023); the objective is ``methods/cleanclip.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import AdamWSpec, CosineSpec, FitSpec, Fraction, Repair, StageContext, ViewsSpec

if TYPE_CHECKING:
    from ssl_backdoor.data.dataset import Dataset


class CleanCLIPSpec(Repair):
    """CleanCLIP (Bansal et al. 2023): fine-tune the suspect on trusted pairs, with an in-modal loss on either side."""

    kind: Literal["cleanclip"] = "cleanclip"
    trusted_fraction: float = Field(default=0.25, gt=0.0, le=1.0)
    in_modal_weight: float = Field(default=1.0, ge=0.0)
    word_edit_p: Fraction = 0.1
    """Share of a caption's words that its augmented twin drops or swaps."""
    augmented_views: ViewsSpec = ViewsSpec()
    """The augmented twin of an image."""
    fit: FitSpec = FitSpec(
        epochs=10,
        batch_size=64,
        views=ViewsSpec(crop_scale=(0.9, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),
        optimizer=AdamWSpec(lr=1e-5, weight_decay=0.1),
        schedule=CosineSpec(per="step"),
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.augmented_views.size_px != self.fit.views.size_px:
            raise ValueError(
                f"augmented_views.size_px {self.augmented_views.size_px} must equal fit.views.size_px "
                f"{self.fit.views.size_px}: image and twin pass one tower"
            )
        return self

    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "CleanCLIP"

    def repair(self, dataset: "Dataset", suspect: Path, context: StageContext) -> dict[str, Any]:
        """Fine-tune the suspect's towers on the trusted pairs of ``dataset``, the clean base data.

        As ``Repair.repair``; ``suspect`` and ``out`` hold a text tower too, and the result is no fresh network.

        Raises:
            DataError: A trusted image has no caption; this and the other errors also as ``pretrain``.
            CheckpointError: The suspect cannot be read.
            SpecError: There are fewer trusted images than one batch.
        """
        import torch

        from ssl_backdoor.defences.towers import load_towers
        from ssl_backdoor.defences.trusted import open_trusted
        from ssl_backdoor.methods.base import Replicas, SSLMethod
        from ssl_backdoor.methods.cleanclip import CleanCLIP
        from ssl_backdoor.methods.clip_towers import build_towers
        from ssl_backdoor.train.pretrain import check_workers, train_backbone
        from ssl_backdoor.train.training_set import load_training_set

        out, seed, resources, checkpoints, on_progress = context
        check_workers(self.fit, resources)
        loaded = load_towers(suspect, self.kind)
        trusted = open_trusted(dataset, self.trusted_fraction, seed, self.fit.batch_size)
        data = load_training_set(trusted.dataset, None, resources, on_progress)
        fit_seed = sub_seed(seed, self.kind)

        def build(replicas: Replicas, device: torch.device) -> SSLMethod:
            towers = build_towers(loaded[0].spec, fit_seed, bn_groups=self.fit.bn_groups // replicas.count)
            for tower, weights in zip(towers, loaded, strict=True):
                tower.load_state_dict(weights.state_dict())
            return CleanCLIP(self, *towers, fit_seed, replicas)

        summary = train_backbone(
            build,
            data,
            self.fit,
            out,
            fit_seed,
            resources,
            checkpoints,
            on_progress,
            {"trusted.parquet": trusted.table},
            (self.fit.views, self.augmented_views),
        )
        return {**summary, "num_trusted": trusted.table.num_rows}
