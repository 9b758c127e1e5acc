"""What the two-core recipes share: BYOL, MoCo v2 and CompRess on 16-px images with a ResNet-8.

Measured starting point (2 cores, one thread a training): BYOL 20 epochs of 5,000 images in 60 to 140 s.
"""

from ssl_backdoor.defences.compress import CompressSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import (
    BYOLSpec,
    CosineSpec,
    EvaluationSpec,
    FitSpec,
    MoCoV2Spec,
    ResNetSpec,
    RunSpec,
    SGDSpec,
    TrainSpec,
    ViewsSpec,
)

VIEWS = ViewsSpec(
    size_px=16,
    crop_scale=(0.2, 1.0),
    brightness=0.6,
    contrast=0.6,
    saturation=0.6,
    hue=0.2,
    blur_p=0.0,
)
BACKBONE = ResNetSpec(depth=8, width=16, stem="small")
FIT = FitSpec(
    epochs=20,
    batch_size=64,
    views=VIEWS,
    optimizer=SGDSpec(lr=0.06, weight_decay=5e-4, nesterov=True),
    schedule=CosineSpec(per="step", warmup_epochs=1.0),
)
BYOL = TrainSpec(
    method=BYOLSpec(
        projector_hidden_dim=128, embedding_dim=64, predictor_hidden_dim=128, ema_decay_start=0.98, ema_per="step"
    ),
    backbone=BACKBONE,
    fit=FIT,
)
MOCO = TrainSpec(
    method=MoCoV2Spec(
        projector_hidden_dim=64, embedding_dim=64, queue_size=2048, temperature=0.2, ema_decay=0.99, shuffle_bn=True
    ),
    backbone=BACKBONE,
    fit=FIT.model_copy(update={"epochs": 50, "bn_groups": 2}),
)
COMPRESS = CompressSpec(
    trusted_fraction=0.25,
    queue_size=1024,
    num_queues=1,
    fit=FIT.model_copy(
        update={
            "epochs": 80,
            "views": VIEWS.model_copy(update={"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}),
        }
    ),
)
EVALUATION = EvaluationSpec()


def attack(trigger_seed: int, target_class: str, poison_fraction_of_target: float = 1.0) -> Saha2022TargetedSpec:
    """A 6-px patch anywhere on the 16-px frame, on a share of the target's training images."""
    return Saha2022TargetedSpec(
        trigger=GridTriggerSpec(
            seed=trigger_seed,
            cells=3,
            style="binarised",
            size_px=6,
            train_location=(0.0, 1.0),
            test_location=(0.0, 1.0),
        ),
        target_class=target_class,
        poison_fraction_of_target=poison_fraction_of_target,
    )


def name_by_rate(run: RunSpec) -> str:
    """A variant after the poisoned share of the target."""
    attack = run.attack
    return (
        f"{100 * attack.poison_fraction_of_target:g} % of the target"
        if isinstance(attack, Saha2022TargetedSpec)
        else run.variant
    )
