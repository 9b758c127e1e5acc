"""What all defences share that train the suspect's two towers on: each names its objective."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import FitSpec, Repair, StageContext, ViewsSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssl_backdoor.data.dataset import Dataset
    from ssl_backdoor.methods.base import Replicas, SSLMethod
    from ssl_backdoor.methods.clip_towers import ImageTower, TextTower

    Objective = Callable[[ImageTower, TextTower, int, Replicas], SSLMethod]
    """Of the two towers to train, a seed and the replicas."""


def tune(
    repair: Repair,
    fit: FitSpec,
    objective: "Objective",
    dataset: "Dataset",
    suspect: Path,
    context: StageContext,
    views: tuple[ViewsSpec, ...] = (),
) -> dict[str, Any]:
    """Train the towers of ``suspect`` on under ``objective``, on the trusted pairs of ``dataset``.

    As ``Repair.repair``; ``suspect`` and ``out`` hold a text tower too. ``views``: those of an image that the objective
    is given, where they differ.

    Raises:
        DataError: A trusted image has no caption; this and the other errors also as ``pretrain``.
        CheckpointError: The suspect cannot be read.
        SpecError: There are fewer trusted images than one batch, or the suspect is no CLIP model.
    """
    import torch

    from ssl_backdoor.defences.towers import load_towers
    from ssl_backdoor.defences.trusted import open_trusted
    from ssl_backdoor.methods.clip_towers import build_towers
    from ssl_backdoor.train.pretrain import check_workers, train_backbone
    from ssl_backdoor.train.training_set import load_training_set

    out, seed, resources, checkpoints, on_progress = context
    check_workers(fit, resources)
    loaded = load_towers(suspect, repair.kind)
    trusted = open_trusted(dataset, repair.trusted_fraction, seed, fit.batch_size)
    data = load_training_set(trusted.dataset, None, resources, on_progress)
    fit_seed = sub_seed(seed, repair.kind)

    def build(replicas: "Replicas", device: torch.device) -> "SSLMethod":
        towers = build_towers(loaded[0].spec, fit_seed, bn_groups=fit.bn_groups // replicas.count)
        for tower, weights in zip(towers, loaded, strict=True):
            tower.load_state_dict(weights.state_dict())
        return objective(*towers, fit_seed, replicas)

    tables = {"trusted.parquet": trusted.table}
    summary = train_backbone(
        build, data, fit, out, fit_seed, resources, checkpoints, on_progress, tables, views or (fit.views,)
    )
    return {**summary, "num_trusted": trusted.table.num_rows}
