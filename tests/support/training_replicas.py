"""Pre-trains and distils with as many replicas as torchrun started; the tests compare with one process.

`python -m tests.support.training_replicas FOLDER`: every replica ingests its own copy of the data; replica 0's results
stay in FOLDER.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.losses import nt_xent
from ssl_backdoor.progress import silent
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import Resources, StageContext
from ssl_backdoor.train.checkpoint import save_backbone
from ssl_backdoor.train.collectives import connect
from ssl_backdoor.train.pretrain import pretrain
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import BACKBONE, METHODS, FolderCheckpoints, compress_spec, train_spec


def contrast(file: Path, resources: Resources) -> None:
    """NT-Xent of 16 embeddings and its gradient for the one weight that made them, averaged as the loop does; and the
    embeddings of all replicas in another order, exchanged."""
    replicas = connect(resources, torch.device("cpu"))
    inputs = torch.randn(16, 5, generator=torch_generator(0, "inputs"))[replicas.slice(16)]
    weight = torch.randn(5, 4, generator=torch_generator(0, "weight")).requires_grad_()
    own = F.normalize(inputs @ weight, dim=1)
    everyone = replicas.all_gather_with_grad(own)
    loss = nt_xent(own, everyone, replicas.slice(16).start, 0.2)
    loss.backward()
    assert weight.grad is not None
    results = {"loss": loss.detach(), "gradient": weight.grad, "everyone": everyone.detach()}
    replicas.all_reduce_mean_([results["loss"], results["gradient"]])
    order = torch.randperm(16, generator=torch_generator(0, "order"))
    results["shuffled"] = replicas.all_gather(replicas.all_to_all_rows(own.view(-1, 2, 2), order))
    save_file(results, file)


def run_all(folder: Path, workers: int) -> None:
    """Two epochs of every method and of the defence; MoCo v2 goes on from the state in FOLDER/states, if any."""
    rank = int(os.environ.get("RANK", "0"))
    dataset = tiny_dataset(folder / f"data-{rank}", train_per_class=14, size=(12, 12))
    resources = Resources(device="cpu", workers=workers, checkpoint_every_steps=5)
    contrast(folder / f"nt_xent-{rank}.safetensors", resources)
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
        summaries[f"compress_{queues}"] = spec_of_defence.repair(
            dataset, suspect, StageContext(out, 0, resources, states, silent)
        )
    (folder / f"summaries-{rank}.json").write_text(json.dumps(summaries))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1")))
