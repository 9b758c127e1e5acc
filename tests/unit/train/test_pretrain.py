import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.device import pick_device
from ssl_backdoor.errors import CheckpointError, DataError, SpecError, TrainingError
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import Resources, SGDSpec
from ssl_backdoor.tables import CURVES, OVERLAY
from ssl_backdoor.train.checkpoint import NoCheckpoints, load_backbone, load_text_tower
from ssl_backdoor.train.pretrain import pretrain
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import BACKBONE, TOWERS, FolderCheckpoints, train_spec

RESOURCES = Resources(device="cpu", checkpoint_every_steps=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"), size=(12, 12))


def run(dataset: Dataset, out: Path, overlay: Overlay | None = None, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    spec = train_spec("byol", **{"epochs": 2, **changes})
    return pretrain(spec, dataset, overlay, out, 0, RESOURCES, NoCheckpoints())


def test_files_and_summary(dataset: Dataset, tmp_path: Path) -> None:
    told: list[Progress] = []
    spec = train_spec("moco_v2", epochs=3)
    summary = pretrain(spec, dataset, None, tmp_path, 0, RESOURCES, NoCheckpoints(), told.append)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "backbone.json",
        "backbone.safetensors",
        "curves.parquet",
    ]
    curves = pq.read_table(tmp_path / "curves.parquet")
    assert curves.schema == CURVES
    assert curves["step"].to_pylist() == list(range(6))  # 18 images, batches of 8: two steps an epoch
    kept = {"steps", "images_per_second", "final_loss", "num_replicas", "num_parameters", "performance"}
    assert summary.keys() == kept
    assert summary["num_parameters"] == sum(parameter.numel() for parameter in load_backbone(tmp_path).parameters())
    assert summary["steps"] == 6
    assert summary["final_loss"] == curves["value"][-1].as_py()
    assert summary["images_per_second"] > 0
    assert load_backbone(tmp_path).spec == BACKBONE
    last = told[-1]
    assert last == Progress(6, 6, "steps", f"loss {summary['final_loss']:.3f}")
    assert sum(one.unit == "steps" for one in told) < 6 or len(told) < 20  # about once a second, not each step


def test_equal_seeds_give_equal_bytes(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path / "a")
    run(dataset, tmp_path / "b")
    for name in ("backbone.safetensors", "curves.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def overlay_of(dataset: Dataset, source_row: int) -> Overlay:
    """Every training image replaced by the one in ``source_row``."""
    train = dataset.samples.filter(pa.compute.equal(dataset.samples["split"], "train"))
    one = train.slice(source_row, 1).to_pylist()[0]
    rows = [
        {
            **dict.fromkeys(OVERLAY.names, 0),
            "key": key,
            "source_key": key,
            "action": "poison",
            "caption": None,
            **{name: one[name] for name in ("shard", "offset", "size", "sha256")},
        }
        for key in train["key"].to_pylist()
    ]
    return Overlay(dataset.folder, pa.Table.from_pylist(rows, schema=OVERLAY))


def test_the_overlay_is_trained_on(dataset: Dataset, tmp_path: Path) -> None:
    """A dataset under an overlay of one image trains as one that holds nothing else: not as the clean one."""
    overlay = overlay_of(dataset, 0)
    assert len(set(read_bytes(overlay.folder, overlay.rows))) == 1
    clean, poisoned = run(dataset, tmp_path / "clean"), run(dataset, tmp_path / "poisoned", overlay)
    assert clean["final_loss"] != poisoned["final_loss"]
    other = run(dataset, tmp_path / "other", overlay_of(dataset, 1))
    assert other["final_loss"] != poisoned["final_loss"]


@pytest.mark.parametrize("method", ["byol", "clip"])
def test_streamed_images_give_the_same_bytes(dataset: Dataset, tmp_path: Path, method: str) -> None:
    for name, max_bytes in (("held", 2**30), ("streamed", 0)):
        (tmp_path / name).mkdir()
        resources = Resources(device="cpu", max_resident_bytes=max_bytes)
        pretrain(train_spec(method, epochs=2), dataset, None, tmp_path / name, 0, resources, NoCheckpoints())
    for file in ("backbone.safetensors", "curves.parquet"):
        assert (tmp_path / "held" / file).read_bytes() == (tmp_path / "streamed" / file).read_bytes()


def test_an_image_without_a_caption_stops_clip_and_no_other(dataset: Dataset, tmp_path: Path) -> None:
    captions = dataset.samples["caption"].to_pylist()
    lacking = pa.array([None if row == 3 else caption for row, caption in enumerate(captions)])
    index = dataset.samples.column_names.index("caption")
    without = dataclasses.replace(dataset, samples=dataset.samples.set_column(index, "caption", lacking))
    with pytest.raises(DataError, match="1 of 18 training images lack a caption; set dataset"):
        pretrain(train_spec("clip"), without, None, tmp_path, 0, RESOURCES, NoCheckpoints())
    assert not list(tmp_path.iterdir())
    pretrain(train_spec("byol", epochs=1), without, None, tmp_path, 0, RESOURCES, NoCheckpoints())


def test_clip_leaves_both_towers(dataset: Dataset, tmp_path: Path) -> None:
    summary = pretrain(train_spec("clip", epochs=2), dataset, None, tmp_path, 0, RESOURCES, NoCheckpoints())
    image, text = load_backbone(tmp_path), load_text_tower(tmp_path)
    assert image.spec == text.spec == TOWERS
    assert summary["num_parameters"] == sum(parameter.numel() for parameter in image.parameters())
    curves = pq.read_table(tmp_path / "curves.parquet")
    assert set(curves["name"].to_pylist()) == {"loss", "temperature"}
    assert curves["value"][-1].as_py() == pytest.approx(0.07, rel=0.2)  # the temperature, before the last update
    assert text.logit_scale.exp().item() != pytest.approx(1 / 0.07, rel=1e-6)


def test_fewer_images_than_a_batch(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="one batch needs 20 images, but there are only 18"):
        run(dataset, tmp_path, batch_size=20)


def test_a_loss_that_explodes_leaves_nothing(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at step 1 of"):
        run(dataset, tmp_path, optimizer=SGDSpec(lr=1e38))
    assert not list(tmp_path.iterdir())


def test_a_state_that_is_none(dataset: Dataset, tmp_path: Path) -> None:
    states = FolderCheckpoints(tmp_path / "states")
    (tmp_path / "states" / "000002.safetensors").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(CheckpointError, match="the training checkpoint is a pickle"):
        pretrain(train_spec("byol"), dataset, None, tmp_path, 0, RESOURCES, states)


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(Resources()) == torch.device("cpu")
    with pytest.raises(SpecError, match="no CUDA device"):
        pick_device(Resources(device="cuda"))
