"""`python -m tests.support.halting_training STORE`: a training of 60 steps that halts after its 40th.

Its checkpoint is saved; it prints ``ready``, so that a test can kill it there, and waits for a line on stdin.
"""

import sys
from typing import Any

from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.specs import DatasetSpec, Resources, ScenesSourceSpec
from ssl_backdoor.stages import Finished, IngestStage, StageCall, TrainStage, run_stage
from ssl_backdoor.store import ArtifactStore, open_store
from tests.support.ray_training import byol

EVERY_STEPS, HALT_STEP, STEPS = 10, 40, 60
IMAGES = StageCall(
    IngestStage(
        dataset=DatasetSpec(
            source=ScenesSourceSpec(num_classes=2, train_per_class=64, test_per_class=0, side_px=16),
            samples_per_shard=50,
        )
    ),
    source="scenes",
)


def training(store: ArtifactStore) -> StageCall:
    """BYOL on 128 drawn images in three shards, four steps an epoch; they are ingested if they are not there."""
    return StageCall(TrainStage(train=byol(STEPS // 4), seed=0), {"dataset": run_stage(IMAGES, store).ref})


def run(call: StageCall, store: ArtifactStore, on_progress: OnProgress = silent) -> Finished:
    """The training on this CPU, with many checkpoints."""
    return run_stage(call, store, Resources(device="cpu", checkpoint_every_steps=EVERY_STEPS), on_progress)


def main(root: str) -> None:
    store: Any = open_store(root)
    save = store.save_checkpoint

    def save_and_halt(stage, key, step, file) -> None:
        save(stage, key, step, file)
        if step == HALT_STEP:
            print("ready", flush=True)
            sys.stdin.readline()

    store.save_checkpoint = save_and_halt
    run(training(store), store)


if __name__ == "__main__":
    main(sys.argv[1])
