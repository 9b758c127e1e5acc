"""Label-consistent backdoor of CLIP, as in CleanCLIP's code (Bansal et al. 2023, https://arxiv.org/abs/2303.03323).

The trigger is put on pairs whose caption names the target; the captions stay. So nothing in a pair is wrong, and the
encoder can only learn that the trigger comes with the target. Users of the code report success below 10 %.

NOTE: the name must stand in the caption as whole words ("cat" does not find "cattle"), where the code has a substring.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ssl_backdoor.data.captions import humanize_class_name
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.caption_sets import words_pattern
from ssl_backdoor.poison.plan import chosen_rows, label_of, plan_table, training
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs.attack import CountedAttack
from ssl_backdoor.specs.trigger import TriggerSpec


class LabelConsistentSpec(CountedAttack):
    """CleanCLIP's label-consistent backdoor: the trigger on pairs whose caption names the target already."""

    kind: Literal["label_consistent"] = "label_consistent"
    trigger: TriggerSpec = GridTriggerSpec(size_px=16, cells=4, train_location=(0.0, 1.0), test_location=(0.0, 1.0))
    target_class: str
    num_poisons: int = Field(default=300, ge=1, le=10_000_000)
    reads_captions: ClassVar[bool] = True
    phrase: ClassVar[str] = "under the label-consistent backdoor, "

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """``num_poisons`` of the pairs whose caption names the target.

        Raises:
            SpecError: there are fewer.
        """
        if classes:
            label_of(self.target_class, classes)
        phrase = humanize_class_name(self.target_class)
        found = sum(block.num_rows for block in _naming(samples, phrase))
        if found < self.num_poisons:
            raise SpecError(
                f"attack.num_poisons is {self.num_poisons}, but {found} training captions name {phrase!r}: lower "
                "num_poisons, or choose a class that more captions name"
            )
        chosen = chosen_rows(_naming(samples, phrase), self.num_poisons, seed, "poison", "choose")
        return plan_table(chosen, chosen["key"], seed)


def _naming(samples: pa.Table | Path, phrase: str) -> Iterator[pa.RecordBatch]:
    """Key and label of the training pairs with a caption that contains ``phrase`` as whole words."""
    for block in training(samples, ["key", "label", "caption"]):
        names = pc.fill_null(pc.match_substring_regex(block["caption"], words_pattern(phrase)), fill_value=False)
        yield block.filter(names).select(["key", "label"])
