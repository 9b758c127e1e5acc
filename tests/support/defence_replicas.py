"""Runs both defences of CLIP with as many replicas as torchrun started; the tests compare with one process.

`python -m tests.support.defence_replicas FOLDER`: every replica ingests its own copy of the data; replica 0's results
stay in FOLDER.
"""

import os
import sys
from pathlib import Path

from ssl_backdoor.progress import silent
from ssl_backdoor.specs import Resources, SGDSpec, StageContext
from ssl_backdoor.train.checkpoint import NoCheckpoints
from tests.support.tiny_defences import clip_defence, save_clip
from tests.support.tiny_sets import tiny_dataset

KINDS = ("distil_image_tower", "cleanclip")


def run_all(folder: Path, workers: int) -> None:
    """Two epochs of either defence on an untrained suspect."""
    rank = int(os.environ.get("RANK", "0"))
    dataset = tiny_dataset(folder / f"data-{rank}", train_per_class=14, size=(12, 12))
    suspect = save_clip(folder / f"suspect-{rank}")
    for kind in KINDS:
        out = folder / f"{kind}-{rank}"
        out.mkdir()
        resources = Resources(device="cpu", workers=workers)
        # Not Adam: it turns the rounding of a gradient that is zero, as of the keys' bias, into whole steps.
        spec = clip_defence(kind, optimizer=SGDSpec(lr=0.05))
        spec.repair(dataset, suspect, StageContext(out, 0, resources, NoCheckpoints(), silent))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1")))
