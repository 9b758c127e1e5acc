"""Which held-out images x' are to become which class y': Carlini & Terzis 2022, https://arxiv.org/abs/2106.09667.

The attack and the evaluation (of the suspect and of its control alike) call the same function, so no list is handed on.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import Samples, blocks
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.plan import chosen_rows, training
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import TargetsSpec

CHOSEN = pa.schema([("key", pa.string()), ("label", pa.int32()), ("target_label", pa.int32())])
"""x' and its own class, and y'; both index into the dataset's classes."""


def choose_targets(samples: Samples, classes: Sequence[str], spec: TargetsSpec, seed: int) -> pa.Table:
    """The (x', y') pairs of one model: a CHOSEN table of ``spec.num_targets`` rows, sorted by key. Pure.

    x' are labelled test images, those of smallest key hash under ``seed``: fewer targets are a subset of more. y' is
    uniform over the OTHER classes that have training images (over all other classes where no training image is
    labelled). Independent of the order of the rows.

    Args:
        samples: SAMPLES of the clean dataset.
        classes: names of the labels.
        spec: how many.
        seed: the run's.

    Raises:
        SpecError: there are fewer labelled test images than targets, or only one class.
    """
    num_held_out = sum(block.num_rows for block in _held_out(samples, ["label"]))
    if num_held_out < spec.num_targets:
        raise SpecError(
            f"targets.num_targets asks for {spec.num_targets} test images, but there are {num_held_out} "
            "labelled ones: lower num_targets, or keep more test images (dataset.test_fraction, max_test_per_class)"
        )
    labelled = training(samples, ["label"], partial(pc.less_equal, 0))
    trained = {label for block in labelled for label in pc.unique(block["label"]).to_pylist()}
    reachable = sorted(trained) or list(range(len(classes)))
    chosen = chosen_rows(_held_out(samples, ["key", "label"]), spec.num_targets, seed, "targets", "choose")
    chosen = chosen.sort_by("key")
    wanted = []
    for key, label in zip(chosen["key"].to_pylist(), chosen["label"].to_pylist(), strict=True):
        others = [other for other in reachable if other != label]
        if not others:
            raise SpecError(
                f"targeted poisoning needs another class to aim at, but {classes[label]!r} is the only one: "
                "ingest two classes or more"
            )
        wanted.append(others[stream(seed, "targets", "class", key).integers(len(others))])
    return pa.table([*chosen.columns, pa.array(wanted, pa.int32())], schema=CHOSEN)


def _held_out(samples: Samples, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """``columns`` of the labelled images that are not trained on."""
    for block in blocks(samples, ["split", "label", "key"]):
        mask = pc.and_(pc.greater_equal(block["label"], 0), pc.not_equal(block["split"], "train"))
        yield block.filter(mask).select(columns)
