"""Saha et al. 2022, "Backdoor Attacks on Self-Supervised Learning": https://arxiv.org/abs/2105.10123.

A visible patch on a share of one category's unlabelled images (targeted) or of all images (untargeted). No label and
no caption is changed. Upstream: poison-generation/generate_poison.py of UMBCvision/SSL-Backdoor at 273ca47.

    n = int(fraction * N)      N: training images of the target class (targeted) or of the dataset (untargeted)

NOTE: upstream shuffles the candidates without a seed; here the n of smallest key hash under the run's seed are taken.
NOTE: upstream saves poisons as JPEG and leaves clean images untouched, so the codec marks the poisons. Here "lossless"
keeps every pixel outside the patch, and "jpeg75" sends the clean candidates through the same codec ("recode").
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.plan import choose, label_of, plan_table
from ssl_backdoor.specs import Saha2022TargetedSpec, Saha2022UntargetedSpec


def plan(
    spec: Saha2022TargetedSpec | Saha2022UntargetedSpec, samples: pa.Table, classes: Sequence[str], seed: int
) -> pa.Table:
    """Which of ``samples`` (SAMPLES) are replaced: a POISON_PLAN table, sorted by key. Pure.

    Independent of the order of the rows and of the shards. At least one image is poisoned.

    Raises:
        SpecError: the target class is unknown.
        DataError: there is no training image to poison.
    """
    eligible = pc.equal(samples["split"], "train")
    if isinstance(spec, Saha2022TargetedSpec):
        eligible = pc.and_(eligible, pc.equal(samples["label"], label_of(spec.target_class, classes)))
        fraction, what = spec.poison_fraction_of_target, f"training images of the target class {spec.target_class!r}"
    else:
        fraction, what = spec.poison_fraction_of_dataset, "training images"
    candidates = samples.select(["key", "label"]).filter(eligible)
    if not candidates.num_rows:
        raise DataError(f"The dataset holds no {what}, so nothing can be poisoned: choose another class or dataset.")
    count = max(1, int(fraction * candidates.num_rows))
    chosen = choose(candidates["key"], count, seed, "poison", "choose")
    return plan_table(candidates, chosen, seed, recode=spec.codec == "jpeg75")
