"""`python ray_training.py STORE WORKERS`: one small training through the Ray adapter, with many checkpoints."""

import sys

from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import (
    BYOLSpec,
    DatasetSpec,
    FitSpec,
    ResNetSpec,
    Resources,
    ScenesSourceSpec,
    SGDSpec,
    TrainSpec,
    ViewsSpec,
)
from ssl_backdoor.stages import IngestStage, StageCall, TrainStage, run_stage
from ssl_backdoor.store import ArtifactStore, open_store

EVERY_STEPS = 10


def byol(epochs: int, bn_groups: int = 1) -> TrainSpec:
    """BYOL in steps of 32 images of 16 px."""
    return TrainSpec(
        method=BYOLSpec(projector_hidden_dim=32, embedding_dim=16, predictor_hidden_dim=32),
        backbone=ResNetSpec(depth=8, width=16, stem="small"),
        fit=FitSpec(
            epochs=epochs,
            batch_size=32,
            views=ViewsSpec(size_px=16, blur_p=0.0),
            optimizer=SGDSpec(lr=0.01),
            bn_groups=bn_groups,
        ),
    )


def training(store: ArtifactStore, bn_groups: int, epochs: int = 15) -> StageCall:
    """BYOL on 128 drawn images, four steps an epoch."""
    source = ScenesSourceSpec(num_classes=2, train_per_class=64, test_per_class=0, side_px=16)
    images = run_stage(StageCall(IngestStage(dataset=DatasetSpec(source=source)), source="scenes"), store).ref
    train = TrainStage(train=byol(epochs, bn_groups), seed=0)
    return StageCall(train, {"dataset": images}, title="train under test")


def main(root: str, workers: int) -> None:
    from tasks.logs import attach_handlers, stderr_handler
    from tasks.ray_fit import ProgressMonitor, disconnect, run_on_ray

    def listen(title: str, progress: Progress) -> None:
        print(title, progress.done, flush=True)

    store = open_store(root)
    monitor = ProgressMonitor(listen)
    with attach_handlers(stderr_handler()):
        try:
            resources = Resources(workers=workers, device="cpu", checkpoint_every_steps=EVERY_STEPS)
            finished = run_on_ray(training(store, workers), store.root, resources, monitor)
        finally:
            monitor.close()
            disconnect()
    print("finished", finished.ref.key)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
