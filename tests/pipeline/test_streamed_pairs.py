"""The paper-size recipe of CLIP on a stand-in for CC3M: shards of photographs of many sizes, streamed at 224 px."""

import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.recipes import choose, clip
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import OpenCLIPSpec, Resources
from ssl_backdoor.stages import EvaluateStage, IngestStage, PoisonStage, StageCall, TrainStage, run_stage
from ssl_backdoor.store import open_store

WORDS = ("banana", "zebra", "violin", "teapot")


def photograph(name, index):
    """Smooth colours of a size of its own."""
    rng = stream(index, "photograph", name)
    height, width = rng.integers(230, 320, 2)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    data = io.BytesIO()
    small.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture
def sources(tmp_path):
    """Two shards as img2dataset writes them, and a folder of labelled test images."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for index in range(12):
                word = WORDS[index % len(WORDS)]
                members = {
                    "jpg": photograph("train", 100 * shard + index),
                    "txt": f"a {word} on a table, number {index}".encode(),
                    "json": json.dumps({"caption": f"a {word}", "status": "success"}).encode(),
                }
                for suffix, data in members.items():
                    member = tarfile.TarInfo(f"{shard:05d}{index:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for word in WORDS:
        (tmp_path / "val" / word).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "val" / word / f"{index}.jpg").write_bytes(photograph(word, index))
    return str(tmp_path / "{00000..00001}.tar"), str(tmp_path / "val")


def trained(store, run, images, poison, max_resident_bytes):
    """The run's training, smaller: the loop, the views and the loss are the paper's."""
    fit = run.train.fit.model_copy(update={"epochs": 2, "batch_size": 8, "bn_groups": 1})
    train = run.train.model_copy(update={"backbone": OpenCLIPSpec(config="tiny-resnet8-w8"), "fit": fit})
    call = StageCall(TrainStage(train=train, seed=0), {"dataset": images, "poison": poison})
    return run_stage(call, store, Resources(device="cpu", max_resident_bytes=max_resident_bytes)).ref


def test_pairs_stream_from_shards_to_a_measured_model(sources, tmp_path):
    shards, labelled = sources
    run = choose("carlini2022_fig2_backdoor", "paper").build(8, 1).runs[0]
    assert run.dataset == clip.CC3M
    attack = run.attack.model_copy(update={"num_poisons": 4, "target_class": "zebra"})
    store = open_store(str(tmp_path / "streamed"))
    ingest = StageCall(
        IngestStage(dataset=run.dataset),
        source=source_digest(run.dataset, shards, labelled),
        data=shards,
        test_data=labelled,
    )
    images = run_stage(ingest, store).ref
    summary = store.manifest(images).summary
    assert (summary["num_train"], summary["num_test"], tuple(summary["classes"])) == (24, 12, tuple(sorted(WORDS)))
    poison = run_stage(StageCall(PoisonStage(attack=attack, seed=0), {"dataset": images}), store).ref
    model = trained(store, run, images, poison, 0)
    stage = EvaluateStage(evaluation=run.evaluation, trigger=attack.trigger, target_class=attack.target_class, seed=0)
    scores = run_stage(StageCall(stage, {"dataset": images, "model": model}), store, Resources(device="cpu")).ref
    measured = store.manifest(scores).summary["measurements"]
    assert 0 <= measured["attack_success_rate/triggered/zero_shot"] <= 1
    assert pq.read_table(store.fetch(scores) / "predictions.parquet").num_rows == (2 + 10) * 12

    held = open_store(str(tmp_path / "held"))
    again = run_stage(ingest, held).ref
    poison = run_stage(StageCall(PoisonStage(attack=attack, seed=0), {"dataset": again}), held).ref
    resident = trained(held, run, again, poison, 2**30)
    assert resident.key == model.key
    weights = [one.fetch(ref) / "backbone.safetensors" for one, ref in ((store, model), (held, resident))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
