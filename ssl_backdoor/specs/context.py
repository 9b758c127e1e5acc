"""What a stage hands to an idea that makes an encoder."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from ssl_backdoor.progress import OnProgress
    from ssl_backdoor.specs.experiment import Resources
    from ssl_backdoor.train.checkpoint import Checkpoints


class StageContext(NamedTuple):
    """Where to, under which seed, with what."""

    out: "Path"
    """An existing folder. An encoder is ``backbone.safetensors`` and ``backbone.json``; one that was trained leaves
    ``curves.parquet`` as well, one with a text tower ``text.safetensors`` and ``text.json``."""
    seed: int
    """Names every random stream."""
    resources: "Resources"
    """Replicas, device, threads."""
    checkpoints: "Checkpoints"
    """Where the state of unfinished work is kept."""
    on_progress: "OnProgress"
    """Called about once a second."""
