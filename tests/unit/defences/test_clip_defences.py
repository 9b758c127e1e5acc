"""Both defences of CLIP from suspect to files."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from ssl_backdoor.defences.cleanclip import CleanCLIPSpec
from ssl_backdoor.defences.trusted import select
from ssl_backdoor.errors import CheckpointError, DataError, SpecError
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.progress import silent
from ssl_backdoor.specs import AdamWSpec, FitSpec, Resources, StageContext, ViewsSpec
from ssl_backdoor.train.checkpoint import NoCheckpoints, load_backbone, load_text_tower, save_backbone
from tests.support import ROOT
from tests.support.defence_replicas import KINDS, run_all
from tests.support.listening_sockets import ON_LOOPBACK
from tests.support.tiny_defences import clip_defence, save_clip
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import BACKBONE, FolderCheckpoints, Stop, compress_spec

each = pytest.mark.parametrize("kind", KINDS)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_dataset(tmp_path_factory.mktemp("data"), train_per_class=14, size=(12, 12))


@pytest.fixture(scope="module")
def suspect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("suspect"))


def run(spec: Any, dataset: Any, suspect: Path, out: Path, checkpoints: Any = None) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    resources = Resources(device="cpu", checkpoint_every_steps=2)
    return spec.repair(dataset, suspect, StageContext(out, 0, resources, checkpoints or NoCheckpoints(), silent))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@each
def test_files_and_summary(dataset: Any, suspect: Path, tmp_path: Path, kind: str) -> None:
    before = contents(suspect)
    summary = run(clip_defence(kind), dataset, suspect, tmp_path)
    assert contents(suspect) == before
    made = contents(tmp_path)
    assert made.keys() == before.keys() | {"curves.parquet", "trusted.parquet"}
    assert summary["num_trusted"] == 21
    assert summary["steps"] == 4
    assert pq.read_table(tmp_path / "trusted.parquet") == select(dataset.samples, 0.5, 0)
    assert made["backbone.json"] == before["backbone.json"]
    assert made["backbone.safetensors"] != before["backbone.safetensors"]
    unchanged = made["text.safetensors"] == before["text.safetensors"]
    assert unchanged == (kind == "distil_image_tower")
    assert load_backbone(tmp_path).spec == load_text_tower(tmp_path).spec


def test_the_student_is_fresh_and_cleanclip_starts_from_the_suspect(
    dataset: Any, suspect: Path, tmp_path: Path
) -> None:
    tiny_steps = {"optimizer": AdamWSpec(lr=1e-9)}
    old = load_file(suspect / "backbone.safetensors")
    for kind, stays in (("cleanclip", True), ("distil_image_tower", False)):
        run(clip_defence(kind, **tiny_steps), dataset, suspect, tmp_path / kind)
        new = load_file(tmp_path / kind / "backbone.safetensors")
        filters = [name for name, value in old.items() if value.ndim == 4]
        assert len(filters) > 5
        assert all(torch.allclose(new[name], old[name], atol=1e-6) == stays for name in filters)


@each
def test_interrupted_and_resumed_is_bitwise_the_same(dataset: Any, suspect: Path, tmp_path: Path, kind: str) -> None:
    spec = clip_defence(kind)
    whole = run(spec, dataset, suspect, tmp_path / "whole")
    with pytest.raises(Stop):
        run(spec, dataset, suspect, tmp_path / "resumed", FolderCheckpoints(tmp_path / "states", dies=True))
    resumed = run(spec, dataset, suspect, tmp_path / "resumed", FolderCheckpoints(tmp_path / "states"))
    assert resumed["final_loss"] == whole["final_loss"]
    first, second = contents(tmp_path / "whole"), contents(tmp_path / "resumed")
    assert all(first[name] == second[name] for name in first if name != "curves.parquet")
    curves = [pq.read_table(tmp_path / folder / "curves.parquet") for folder in ("whole", "resumed")]
    assert curves[0] == curves[1]


@each
def test_only_trusted_pairs_are_read(dataset: Any, suspect: Path, tmp_path: Path, kind: str) -> None:
    """With every other image's bytes broken and caption gone the defence gives the same model."""
    run(clip_defence(kind), dataset, suspect, tmp_path / "whole")
    trusted = set(pq.read_table(tmp_path / "whole" / "trusted.parquet")["key"].to_pylist())
    broken = tiny_dataset(tmp_path / "broken", train_per_class=14, size=(12, 12))
    rows = broken.samples.to_pylist()
    for row in rows:
        if row["key"] not in trusted:
            row["caption"] = None
            with (broken.folder / row["shard"]).open("r+b") as shard:
                shard.seek(row["offset"])
                shard.write(bytes(row["size"]))
    broken = dataclasses.replace(broken, samples=pa.Table.from_pylist(rows, schema=broken.samples.schema))
    run(clip_defence(kind), broken, suspect, tmp_path / "again")
    for name in ("backbone.safetensors", "text.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@each
def test_a_model_or_data_that_does_not_fit(dataset: Any, suspect: Path, tmp_path: Path, kind: str) -> None:
    resnet = tmp_path / "resnet"
    resnet.mkdir()
    save_backbone(build_backbone(BACKBONE, 1, 5), 2, resnet)
    with pytest.raises(SpecError, match=rf"{kind} needs the two towers .* suspect is a resnet; use defence compress"):
        run(clip_defence(kind), dataset, resnet, tmp_path)
    with pytest.raises(SpecError, match=r"use distil_image_tower or cleanclip"):
        run(compress_spec(2), dataset, suspect, tmp_path)
    with pytest.raises(CheckpointError, match=r"expected backbone\.json"):
        run(clip_defence(kind), dataset, tmp_path / "nothing", tmp_path)
    few = clip_defence(kind).model_copy(update={"trusted_fraction": 0.1})
    with pytest.raises(SpecError, match=r"needs 8 trusted images, but trusted_fraction 0\.1 gives 3"):
        run(few, dataset, suspect, tmp_path)
    silent = dataset.samples.set_column(3, "caption", pa.nulls(dataset.samples.num_rows, pa.string()))
    with pytest.raises(DataError, match="caption"):
        run(clip_defence(kind), dataclasses.replace(dataset, samples=silent), suspect, tmp_path)


def test_twins_of_another_size() -> None:
    with pytest.raises(ValidationError, match=r"augmented_views\.size_px 16 must equal fit\.views\.size_px 12"):
        CleanCLIPSpec(augmented_views=ViewsSpec(size_px=16), fit=FitSpec(views=ViewsSpec(size_px=12)))


@pytest.mark.slow
def test_two_replicas_are_one(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    run_all(alone, 1)
    command = [
        *(*ON_LOOPBACK, sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=127.0.0.1:0", "--module", "tests.support.defence_replicas", str(both)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for kind in KINDS:
        one, two = (pq.read_table(folder / f"{kind}-0" / "curves.parquet").to_pylist() for folder in (alone, both))
        losses = [[row["value"] for row in rows if row["name"] == "loss"] for rows in (one, two)]
        assert len(losses[0]) == 4
        assert losses[1] == pytest.approx(losses[0], rel=2e-4)
        assert not list((both / f"{kind}-1").iterdir())
        for name in ("backbone.safetensors", "text.safetensors"):
            weights = [load_file(folder / f"{kind}-0" / name) for folder in (alone, both)]
            for key, value in weights[0].items():
                torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=2e-5, msg=f"{kind} {key}")
