"""Saha et al. 2022, "Backdoor Attacks on Self-Supervised Learning": https://arxiv.org/abs/2105.10123.

A visible patch on a share of one category's unlabelled images (targeted) or of all images (untargeted). No label and
no caption is changed. Upstream: poison-generation/generate_poison.py of UMBCvision/SSL-Backdoor at 273ca47.

    n = int(fraction * N)      N: training images of the target class (targeted) or of the dataset (untargeted)

NOTE: upstream shuffles the candidates without a seed; here the n of smallest key hash under the run's seed are taken.
NOTE: upstream saves poisons as JPEG and leaves clean images untouched, so the codec marks the poisons. Here "lossless"
keeps every pixel outside the patch, and "jpeg75" sends the clean candidates through the same codec ("recode");
"jpeg75_poisons" is upstream's.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.plan import Where, chosen_rows, label_of, plan_table, training
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs.attack import Attack, Codec, NumOfClass, num_poisoned
from ssl_backdoor.specs.trigger import TriggerSpec


class Saha2022TargetedSpec(Attack):
    """Saha et al. 2022: the trigger on a share of one category's unlabelled images."""

    kind: Literal["saha2022_targeted"] = "saha2022_targeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    target_class: str
    poison_fraction_of_target: float = Field(default=0.5, gt=0.0, le=1.0)
    codec: Codec = "lossless"
    """jpeg75 re-encodes ALL images of the class, so that the compression artefact is no cue; jpeg75_poisons, as the
    authors' code, the poisons alone."""
    poisons_target_class: ClassVar[bool] = True

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """Images of the target class; at least one."""
        where = partial(pc.equal, label_of(self.target_class, classes))
        what = f"training images of the target class {self.target_class!r}"
        return _plan(samples, where, self.poison_fraction_of_target, self.codec, seed, what)

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        images = num_of_class(self.target_class)
        return images if self.codec == "jpeg75" else num_poisoned(images, self.poison_fraction_of_target)

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"target_class": target_class, "poison_fraction_of_target": 1.0})


class Saha2022UntargetedSpec(Attack):
    """Saha et al. 2022: the trigger on random images of every category; success is lost accuracy."""

    kind: Literal["saha2022_untargeted"] = "saha2022_untargeted"
    trigger: TriggerSpec = GridTriggerSpec(size_px=50)
    poison_fraction_of_dataset: float = Field(default=0.05, gt=0.0, le=1.0)
    codec: Codec = "lossless"

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """Images of any class; at least one."""
        return _plan(samples, None, self.poison_fraction_of_dataset, self.codec, seed, "training images")

    def num_planned(self, num_of_class: NumOfClass, num_train: int) -> int:
        """Rows of its plan, from counts alone."""
        return num_train if self.codec == "jpeg75" else num_poisoned(num_train, self.poison_fraction_of_dataset)

    def largest(self, target_class: str, num_poisons: int) -> Self:
        """The same on all it can take."""
        return self.model_copy(update={"poison_fraction_of_dataset": 1.0})


def _plan(
    samples: pa.Table | Path, where: Where | None, fraction: float, codec: Codec, seed: int, what: str
) -> pa.Table:
    def candidates(columns: list[str]) -> Iterator[pa.RecordBatch]:
        return training(samples, columns, where)

    num_candidates = sum(block.num_rows for block in candidates(["label"]))
    if not num_candidates:
        raise DataError(f"the dataset holds no {what}, so nothing can be poisoned: choose another class or dataset")
    count = num_poisoned(num_candidates, fraction)
    chosen = chosen_rows(candidates(["key", "label"]), count, seed, "poison", "choose")
    rows = pa.Table.from_batches(candidates(["key", "label"])) if codec == "jpeg75" else chosen
    return plan_table(rows, chosen["key"], seed)
