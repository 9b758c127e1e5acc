"""Pre-trains and distils with as many replicas as torchrun started; the tests compare with one process.

Usage: replica_worker.py FOLDER. Every replica ingests its own copy of the data; replica 0's results stay in FOLDER.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tiny_sets import tiny_dataset
from tiny_training import BACKBONE, METHODS, FolderCheckpoints, compress_spec, train_spec

from ssl_backdoor.defences import defend
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.specs import Resources
from ssl_backdoor.train.checkpoint import save_backbone
from ssl_backdoor.train.pretrain import pretrain


def run_all(folder: Path, workers: int) -> None:
    """Two epochs of every method and of the defence; MoCo v2 goes on from the state in FOLDER/states, if any."""
    rank = int(os.environ.get("RANK", "0"))
    dataset = tiny_dataset(folder / f"data-{rank}", train_per_class=14, size=(12, 12))
    resources = Resources(device="cpu", workers=workers, checkpoint_every_steps=5)
    summaries: dict[str, Any] = {}
    for kind in METHODS:
        out = folder / f"{kind}-{rank}"
        out.mkdir()
        states = FolderCheckpoints(folder / f"states-{rank}" / kind)
        spec = train_spec(kind, epochs=2)
        summaries[kind] = pretrain(spec, dataset, None, out, 0, resources, states)
    suspect = folder / f"suspect-{rank}"
    suspect.mkdir()
    save_backbone(build_backbone(BACKBONE, 1, 5), 1, suspect)
    for queues in (1, 2):
        out = folder / f"compress_{queues}-{rank}"
        out.mkdir()
        states = FolderCheckpoints(folder / f"states-{rank}" / f"compress_{queues}")
        spec_of_defence = compress_spec(queues, epochs=4)
        summaries[f"compress_{queues}"] = defend(spec_of_defence, dataset, suspect, out, 0, resources, states)
    (folder / f"summaries-{rank}.json").write_text(json.dumps(summaries))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1")))
