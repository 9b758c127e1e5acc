"""One file per paper; ``plan`` is the list of them."""

from collections.abc import Sequence
from typing import assert_never

import pyarrow as pa

from ssl_backdoor.data.dataset import Samples
from ssl_backdoor.poison.attacks import carlini2022, saha2022
from ssl_backdoor.poison.plan import label_of
from ssl_backdoor.specs import (
    AttackSpec,
    Carlini2022BackdoorSpec,
    Carlini2022TargetedSpec,
    NoAttackSpec,
    Saha2022TargetedSpec,
    Saha2022UntargetedSpec,
)
from ssl_backdoor.tables import POISON_PLAN


def plan(attack: AttackSpec, samples: Samples, classes: Sequence[str], seed: int) -> pa.Table:
    """The attack's decisions over ``samples`` (SAMPLES) as a POISON_PLAN table sorted by key, without touching a pixel.

    Pure; independent of the order of the rows and of the shards.

    Raises:
        SpecError: the target class is unknown, or more poisons or targets than images.
        DataError: there is no training image to poison, or no caption that names the target class.
    """
    match attack:
        case NoAttackSpec():
            return POISON_PLAN.empty_table()
        case Saha2022TargetedSpec() | Saha2022UntargetedSpec():
            return saha2022.plan(attack, samples, classes, seed)
        case Carlini2022TargetedSpec() | Carlini2022BackdoorSpec():
            return carlini2022.plan(attack, samples, classes, seed)
        case _:
            assert_never(attack)


def num_planned(attack: AttackSpec, classes: Sequence[str], train_per_class: Sequence[int], num_train: int) -> int:
    """How many rows ``plan`` will have, from counts alone: training images of each of ``classes``, and of all.

    Raises:
        SpecError: the target class is unknown.
    """
    return attack.num_planned(lambda name: train_per_class[label_of(name, classes)], num_train)
