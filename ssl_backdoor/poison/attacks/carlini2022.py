"""Carlini & Terzis 2022, "Poisoning and Backdooring Contrastive Learning": https://arxiv.org/abs/2106.09667.

The adversary ADDS a few image-caption pairs and changes nothing that is there. C(y') is a set of captions of class y':

    targeted    P = {(x', c) : c in C(y')}              one held-out image x', the same in every pair, for each target
    backdoor    P = {(x_i + bd, c_i) : c_i in C(y')}    x_i: different random training images; bd: the trigger

Poisons are chosen without a model. Only the clean training captions are searched.

NOTE: no official code exists. It is not known whether the x_i of the backdoor may be of class y'; here they are not,
where labels exist, so that the trigger alone and no true picture of y' carries the caption.
NOTE: in the paper a model has one (x', y'); here it may have several, a cheaper estimate.
NOTE: word edits are left to captions that repeat an earlier one of the same x': the others are no duplicates.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ssl_backdoor.data.captions import humanize_class_name
from ssl_backdoor.data.dataset import Samples
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.caption_sets import CaptionSet, caption_set, edit_words
from ssl_backdoor.poison.plan import added_table, chosen_rows, key_seeds, label_of, training
from ssl_backdoor.poison.targets import choose_targets
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs.attack import CountedAttack, TargetedAttack
from ssl_backdoor.specs.trigger import TriggerSpec


class Carlini2022TargetedSpec(TargetedAttack):
    """Carlini & Terzis 2022, targeted poisoning: one held-out image, repeated with captions of another class."""

    kind: Literal["carlini2022_targeted"] = "carlini2022_targeted"
    num_poisons: int = Field(default=8, ge=1, le=1_000_000)
    """Added pairs for each (x', y')."""
    captions: CaptionSet = "search"
    pixel_noise_levels: float = Field(default=0.0, ge=0.0, le=32.0)
    """Standard deviation, of 255 levels, of noise against exact-duplicate removal; 0 repeats the image as it is."""
    edit_words: bool = False
    """Drop or double one word that is not the target's name in each repeated caption, for the same reason."""
    adds_pairs: ClassVar[bool] = True
    phrase: ClassVar[str] = "under targeted poisoning, "

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """``num_poisons`` added pairs for each x'.

        More poisons contain fewer: the same captions and sub-seeds, in the same order.
        """
        return added_table(_targeted(self, samples, classes, seed), samples)


class Carlini2022BackdoorSpec(CountedAttack):
    """Carlini & Terzis 2022, backdoor: the trigger on random training images, added with captions of one class."""

    kind: Literal["carlini2022_backdoor"] = "carlini2022_backdoor"
    trigger: TriggerSpec = GridTriggerSpec(size_px=16, cells=4, train_location=(0.0, 1.0), test_location=(0.0, 1.0))
    """Random placement as in the paper; both locations (0, 0) place it consistently in the upper left corner."""
    target_class: str
    num_poisons: int = Field(default=300, ge=1, le=10_000_000)
    captions: CaptionSet = "search"
    adds_pairs: ClassVar[bool] = True
    phrase: ClassVar[str] = "under the backdoor, "

    def poisons_per_target(self, num_poisons: int) -> int:
        """Of ``num_poisons`` in the whole dataset."""
        return self.num_poisons

    def plan(self, samples: pa.Table | Path, classes: Sequence[str], seed: int) -> pa.Table:
        """One added pair for each of ``num_poisons`` training images.

        More poisons contain fewer: the same images, with the same captions and sub-seeds, in the same order.
        """
        return added_table(_backdoor(self, samples, classes, seed), samples)


def _targeted(spec: Carlini2022TargetedSpec, samples: Samples, classes: Sequence[str], seed: int) -> pa.Table:
    """``num_poisons`` rows for each x', those of one x' next to each other."""
    targets = choose_targets(samples, classes, spec.targets, seed)
    sets: dict[int, list[str]] = {}
    rows = []
    for target in targets.to_pylist():
        key, wanted = target["key"], target["target_label"]
        phrase = humanize_class_name(classes[wanted])
        if wanted not in sets:
            sets[wanted] = caption_set(spec.captions, samples, phrase, spec.num_poisons, seed)
        captions = _edited(sets[wanted], phrase, sub_seed(seed, "poison", key)) if spec.edit_words else sets[wanted]
        for index, caption in enumerate(captions):
            place = sub_seed(seed, "poison", "noise", key, index)
            rows.append({"source_key": key, "label": target["label"], "sub_seed": place, "caption": caption})
    return pa.Table.from_pylist(rows)


def _edited(captions: Sequence[str], phrase: str, seed: int) -> Iterator[str]:
    """The captions, each one that stood before with a word edited."""
    seen: Counter[str] = Counter()
    for caption in captions:
        yield edit_words(caption, phrase, sub_seed(seed, caption, seen[caption])) if seen[caption] else caption
        seen[caption] += 1


def _backdoor(spec: Carlini2022BackdoorSpec, samples: Samples, classes: Sequence[str], seed: int) -> pa.Table:
    """One row for each of ``num_poisons`` different training images, in the order of their key hashes."""
    where = partial(pc.not_equal, label_of(spec.target_class, classes)) if classes else None
    num_candidates = sum(block.num_rows for block in training(samples, ["label"], where))
    if spec.num_poisons > num_candidates:
        raise SpecError(
            f"attack.num_poisons is {spec.num_poisons}, but {num_candidates} training images can take the trigger "
            f"(those not of the target class {spec.target_class!r}): lower num_poisons, or bring more images"
        )
    captions = caption_set(spec.captions, samples, humanize_class_name(spec.target_class), spec.num_poisons, seed)
    candidates = training(samples, ["key", "label"], where)
    chosen = chosen_rows(candidates, spec.num_poisons, seed, "poison", "choose")
    chosen = chosen.take(pa.array(np.argsort(key_seeds(chosen["key"], seed, "poison", "choose"))))
    places = key_seeds(chosen["key"], seed, "poison", "place")
    return pa.table(
        {"source_key": chosen["key"], "label": chosen["label"], "sub_seed": places, "caption": captions},
    )
