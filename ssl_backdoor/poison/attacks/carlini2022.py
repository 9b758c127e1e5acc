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
from typing import assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.captions import spoken
from ssl_backdoor.data.dataset import Samples, blocks
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.caption_sets import caption_set, edit_words
from ssl_backdoor.poison.plan import chosen_rows, key_seeds, label_of, training
from ssl_backdoor.poison.targets import choose_targets
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.tables import POISON_PLAN


def plan(
    spec: Carlini2022TargetedSpec | Carlini2022BackdoorSpec, samples: Samples, classes: Sequence[str], seed: int
) -> pa.Table:
    """The pairs that are added: a POISON_PLAN table of "add" rows, sorted by key. Pure.

    Independent of the order of the rows and of the shards. More poisons contain fewer: the same images, with the same
    captions and sub-seeds, in the same order.

    Raises:
        SpecError: the target class is unknown, more poisons than images to stamp, or fewer test images than targets.
        DataError: no caption contains the target's name, or the dataset already has keys such as "poison-000000".
    """
    match spec:
        case Carlini2022TargetedSpec():
            added = _targeted(spec, samples, classes, seed)
        case Carlini2022BackdoorSpec():
            added = _backdoor(spec, samples, classes, seed)
        case _:
            assert_never(spec)
    width = max(6, len(str(added.num_rows - 1)))
    keys = pa.array([f"poison-{index:0{width}d}" for index in range(added.num_rows)])
    if any(pc.any(pc.is_in(block["key"], value_set=keys)).as_py() for block in blocks(samples, ["key"])):
        raise DataError('the dataset already has an image called "poison-...", as added pairs are: rename it.')
    actions = pa.array(["add"] * added.num_rows)
    columns = {"key": keys, "action": actions} | {name: added[name] for name in added.column_names}
    return pa.table([columns[name] for name in POISON_PLAN.names], POISON_PLAN.names).cast(POISON_PLAN)


def _targeted(spec: Carlini2022TargetedSpec, samples: Samples, classes: Sequence[str], seed: int) -> pa.Table:
    """``num_poisons`` rows for each x', those of one x' next to each other."""
    targets = choose_targets(samples, classes, spec.targets, seed)
    sets: dict[int, list[str]] = {}
    rows = []
    for target in targets.to_pylist():
        key, wanted = target["key"], target["target_label"]
        phrase = spoken(classes[wanted])
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
            f"(those not of the target class {spec.target_class!r}): lower num_poisons, or bring more images."
        )
    captions = caption_set(spec.captions, samples, spoken(spec.target_class), spec.num_poisons, seed)
    candidates = training(samples, ["key", "label"], where)
    chosen = chosen_rows(candidates, spec.num_poisons, seed, "poison", "choose")
    chosen = chosen.take(pa.array(np.argsort(key_seeds(chosen["key"], seed, "poison", "choose"))))
    places = key_seeds(chosen["key"], seed, "poison", "place")
    return pa.table(
        {"source_key": chosen["key"], "label": chosen["label"], "sub_seed": places, "caption": captions},
    )
