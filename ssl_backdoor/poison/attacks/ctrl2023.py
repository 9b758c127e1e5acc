"""CTRL, Li et al. 2023 (https://arxiv.org/abs/2210.07346): a frequency trigger on images of the target class.

    n = int(fraction * N)      N: training images of all classes; the n are images of the target class, changed in place

No label is changed. Written from the paper's description.

NOTE: the authors take the first n images of the class; here those of smallest key hash under the run's seed.
NOTE: JPEG and blur remove the trigger, so poisons are stored without loss, and the authors train without blur.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.plan import chosen_rows, label_of, plan_table, training
from ssl_backdoor.poison.triggers.frequency import CtrlTriggerSpec
from ssl_backdoor.specs.attack import Attack, NumOfClass, num_poisoned
from ssl_backdoor.specs.trigger import TriggerSpec


class Ctrl2023Spec(Attack):
    """Li et al. 2023: a frequency trigger on images of the target class."""

    kind: Literal["ctrl2023"] = "ctrl2023"
    trigger: TriggerSpec = CtrlTriggerSpec()
    target_class: str
    poison_fraction_of_dataset: float = Field(default=0.01, gt=0.0, le=1.0)
    """Of all training images; the poisons are the target's."""
    poisons_target_class: ClassVar[bool] = True

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return min(num_of_class(self.target_class), num_poisoned(num_train, self.poison_fraction_of_dataset))

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"target_class": target_class, "poison_fraction_of_dataset": 1.0})

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """Images of the target class; at least one.

        Raises:
            SpecError: fewer images of the class than poisons, unless all of them are asked for (a fraction of 1).
        """
        where = partial(pc.equal, label_of(self.target_class, classes))
        of_target = sum(block.num_rows for block in training(samples, ["label"], where))
        num_train = sum(block.num_rows for block in training(samples, ["label"]))
        count = num_poisoned(num_train, self.poison_fraction_of_dataset)
        if count > of_target and (self.poison_fraction_of_dataset < 1 or not of_target):
            raise SpecError(
                f"{self.poison_fraction_of_dataset:g} of the {num_train} training images is {count}, but the target "
                f"class {self.target_class!r} has {of_target}: lower attack.poison_fraction_of_dataset"
            )
        chosen = chosen_rows(
            training(samples, ["key", "label"], where), min(count, of_target), seed, "poison", "choose"
        )
        return plan_table(chosen, chosen["key"], seed)
