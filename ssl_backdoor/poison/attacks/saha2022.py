"""Saha et al. 2022, "Backdoor Attacks on Self-Supervised Learning": https://arxiv.org/abs/2105.10123.

A visible patch on a share of one category's unlabelled images (targeted) or of all images (untargeted). No label and
no caption is changed. Upstream: poison-generation/generate_poison.py of UMBCvision/SSL-Backdoor at 273ca47.

    n = int(fraction * N)      N: training images of the target class (targeted) or of the dataset (untargeted)

NOTE: upstream shuffles the candidates without a seed; here the n of smallest key hash under the run's seed are taken.
NOTE: upstream saves poisons as JPEG and leaves clean images untouched, so the codec marks the poisons. Here "lossless"
keeps every pixel outside the patch, and "jpeg75" sends the clean candidates through the same codec ("recode").
"""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import Samples
from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.plan import chosen_rows, label_of, plan_table, training
from ssl_backdoor.specs import Saha2022TargetedSpec, Saha2022UntargetedSpec, num_poisoned


def plan(
    spec: Saha2022TargetedSpec | Saha2022UntargetedSpec, samples: Samples, classes: Sequence[str], seed: int
) -> pa.Table:
    """Which of ``samples`` (SAMPLES) are replaced: a POISON_PLAN table, sorted by key. Pure.

    Independent of the order of the rows and of the shards. At least one image is poisoned.

    Raises:
        SpecError: the target class is unknown.
        DataError: there is no training image to poison.
    """
    if isinstance(spec, Saha2022TargetedSpec):
        where, fraction = partial(pc.equal, label_of(spec.target_class, classes)), spec.poison_fraction_of_target
        what = f"training images of the target class {spec.target_class!r}"
    else:
        where, fraction, what = None, spec.poison_fraction_of_dataset, "training images"
    num_candidates = sum(block.num_rows for block in training(samples, ["label"], where))
    if not num_candidates:
        raise DataError(f"The dataset holds no {what}, so nothing can be poisoned: choose another class or dataset.")
    count = num_poisoned(num_candidates, fraction)
    chosen = chosen_rows(training(samples, ["key", "label"], where), count, seed, "poison", "choose")
    rows = pa.Table.from_batches(training(samples, ["key", "label"], where)) if spec.codec == "jpeg75" else chosen
    return plan_table(rows, chosen["key"], seed)
