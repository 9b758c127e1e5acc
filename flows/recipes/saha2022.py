"""``saha2022_moco`` and ``saha2022_byol``: the paper's protocol at its own scale.

Saha et al. 2022, main setting: ImageNet-100, ResNet-18, a 50-px trigger on half of one category (0.5 % of the
data), ten trigger/category pairs, linear probe on 1 % and 10 % of the labels, CompRess on 25 % clean data.
Validated as specs and on small stand-ins, not run at this scale on this project's machines.
"""

from flows.recipes.small import EVALUATION
from ssl_backdoor.data.dataset import imagenet100
from ssl_backdoor.specs import (
    AdamSpec,
    BYOLSpec,
    CompressSpec,
    DatasetSpec,
    FitSpec,
    GridTriggerSpec,
    MilestonesSpec,
    MoCoV2Spec,
    ReportSpec,
    ResNetSpec,
    RunSpec,
    Saha2022TargetedSpec,
    TrainSpec,
    ViewsSpec,
)

# Trigger number and target category of the paper's ten pairs. NOTE: the triggers are our seeded grids under the
# paper's numbers; the authors' PNG files can be used with --set attack.trigger=... (an "image" trigger).
PAIRS = (
    (10, "n02106550"),  # Rottweiler
    (11, "n02123045"),  # tabby cat
    (12, "n02701002"),  # ambulance
    (13, "n03930630"),  # pickup truck
    (14, "n03642806"),  # laptop
    (15, "n01855672"),  # goose
    (16, "n03947888"),  # pirate ship
    (17, "n03424325"),  # gas mask
    (18, "n04517823"),  # vacuum cleaner
    (19, "n01983481"),  # American lobster
)
MOCO = TrainSpec(method=MoCoV2Spec(), backbone=ResNetSpec(), fit=FitSpec(bn_groups=2))
BYOL = TrainSpec(
    method=BYOLSpec(),
    backbone=ResNetSpec(),
    fit=FitSpec(
        batch_size=512,
        views=ViewsSpec(interpolation="bicubic", grey_p=0.1),
        optimizer=AdamSpec(),
        schedule=MilestonesSpec(warmup_steps=500),
        bn_groups=4,
    ),
)


def _recipe(name: str, method: str, train: TrainSpec, pairs: int, seeds: int) -> ReportSpec:
    return ReportSpec(
        recipe=name,
        question=f"At the paper's scale and over {pairs} of its pairs, does a 50-px patch on half of one category make "
        f"a {method} encoder answer that category, and does distillation on a trusted quarter remove it?",
        note="Images are held at 256 px (shorter side, centre crop) for training; the trigger is stamped before that, "
        "on the stored photograph, as in the authors' code.",
        runs=tuple(
            RunSpec(
                dataset=DatasetSpec(classes=imagenet100(), resident_px=256),
                attack=Saha2022TargetedSpec(
                    trigger=GridTriggerSpec(seed=trigger_seed, cells=4, style="smooth", size_px=50),
                    target_class=target,
                    poison_fraction_of_target=0.5,
                ),
                train=train,
                defence=CompressSpec(),
                evaluation=EVALUATION.model_copy(update={"resize_px": 256, "crop_px": 224}),
                seed=seed,
            )
            for trigger_seed, target in PAIRS[:pairs]
            for seed in range(seeds)
        ),
    )


def saha2022_moco(pairs: int, seeds: int) -> ReportSpec:
    """MoCo v2: 200 epochs, batch 256 on two BatchNorm groups, lr 0.06 with per-epoch cosine."""
    return _recipe("saha2022_moco", "MoCo v2", MOCO, pairs, seeds)


def saha2022_byol(pairs: int, seeds: int) -> ReportSpec:
    """BYOL: 200 epochs, batch 512 on four BatchNorm groups, Adam 2e-3, x0.2 at epochs 150 and 175."""
    return _recipe("saha2022_byol", "BYOL", BYOL, pairs, seeds)
