"""One file per paper; see ``ssl_backdoor.specs.attack`` for what an attack is."""

from collections.abc import Sequence

from ssl_backdoor.poison.plan import label_of
from ssl_backdoor.specs import AttackSpec


def num_planned(attack: AttackSpec, classes: Sequence[str], train_per_class: Sequence[int], num_train: int) -> int:
    """How many rows its plan will have, from counts alone: training images of each of ``classes``, and of all.

    Raises:
        SpecError: the target class is unknown.
    """
    return attack.num_planned(lambda name: train_per_class[label_of(name, classes)], num_train)
