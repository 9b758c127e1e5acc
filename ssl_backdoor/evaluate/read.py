"""What probes read."""

from collections.abc import Sequence
from typing import NamedTuple

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.evaluate.features import Condition
from ssl_backdoor.methods.build import Backbone
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.specs import EvaluationSpec


class EvaluationInputs(NamedTuple):
    """What an evaluation hands to a probe that reads other features than the others."""

    backbone: Backbone
    """In eval mode, on the evaluation's device; left as it is."""
    dataset: Dataset
    conditions: Sequence[Condition]
    """Clean; then, with a trigger, triggered and under each unseen trigger."""
    spec: EvaluationSpec
    seed: int
    on_progress: OnProgress = silent
