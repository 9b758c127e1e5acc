import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ssl_backdoor.defences.trusted import select
from ssl_backdoor.errors import CheckpointError, SpecError
from ssl_backdoor.methods.backbones import ResNet
from ssl_backdoor.methods.base import SingleProcess
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.compress import CompRess
from ssl_backdoor.methods.losses import similarity_divergence
from ssl_backdoor.progress import silent
from ssl_backdoor.specs import Resources, StageContext
from ssl_backdoor.train.checkpoint import NoCheckpoints, load_backbone, save_backbone
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import BACKBONE, build_compress, compress_spec, random_batch

RESOURCES = Resources(device="cpu")


def objective(num_queues: int) -> CompRess:
    method = build_compress(num_queues, SingleProcess()).train()
    assert isinstance(method, CompRess)
    return method


# ---------------------------------------------------------------------------------------------------- objective


def test_teacher_stays_frozen_in_eval_mode_and_out_of_the_state() -> None:
    method = objective(2)
    teacher = method.teacher[0]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        method.loss(random_batch(method, step)).loss.backward()
        optimizer.step()
        method.after_step(0.0)
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert {name.split(".")[0] for name in method.state_dict()} == {
        "backbone",
        "student_key",
        "student_queue",
        "teacher_queue",
    }


@pytest.mark.parametrize("num_queues", [1, 2])
def test_similarities_are_taken_before_the_batch_enters_the_queues(num_queues: int) -> None:
    method = objective(num_queues)
    student_network = copy.deepcopy(torch.nn.Sequential(method.backbone, method.mapper))
    key_network = copy.deepcopy(method.backbone)
    teacher_queue = method.teacher_queue.rows.clone()
    student_queue = method.student_queue.rows.clone() if method.student_queue else teacher_queue
    batch = random_batch(method, 0)
    (images,) = batch.views
    teacher = F.normalize(method.teacher[0](images), dim=1)
    student = F.normalize(student_network(images), dim=1)
    expected = similarity_divergence(student, teacher, student_queue, teacher_queue, 0.2)
    torch.testing.assert_close(method.loss(batch).loss, expected)
    method.after_step(0.0)
    torch.testing.assert_close(method.teacher_queue.rows[:8], teacher)
    assert torch.equal(method.teacher_queue.rows[8:], teacher_queue[8:])
    if method.student_queue is not None:  # filled by the EMA copy, which is still equal to the student
        torch.testing.assert_close(method.student_queue.rows[:8], F.normalize(key_network(images), dim=1))


def test_queues_start_uniform_and_apart() -> None:
    method = CompRess(
        compress_spec(2).model_copy(update={"queue_size": 4000}),
        build_backbone(BACKBONE, 1, 1),
        build_backbone(BACKBONE, 1, 0),
        0,
    )
    assert method.student_queue is not None
    bound = (16 / 3) ** -0.5
    for rows in (method.teacher_queue.rows, method.student_queue.rows):
        assert rows.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert rows.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not torch.equal(method.teacher_queue.rows, method.student_queue.rows)


def test_one_queue_learns_a_map_to_the_teachers_space_and_has_no_slow_copy() -> None:
    method = objective(1)
    assert isinstance(method.mapper, torch.nn.Linear)
    assert method.student_key is None
    assert method.student_queue is None


# ---------------------------------------------------------------------------------------------------- defence


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_dataset(tmp_path_factory.mktemp("data"), train_per_class=14, size=(12, 12))


@pytest.fixture(scope="module")
def suspect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suspect")
    save_backbone(build_backbone(BACKBONE, 1, 5), 2, folder)
    return folder


def run(dataset: Any, suspect: Path, out: Path, **changes: Any) -> dict[str, Any]:
    spec = compress_spec(2, epochs=4).model_copy(update=changes)
    return spec.repair(dataset, suspect, StageContext(out, 0, RESOURCES, NoCheckpoints(), silent))


def test_defend_writes_student_and_trusted_and_leaves_the_suspect(dataset: Any, suspect: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in suspect.iterdir()}
    summary = run(dataset, suspect, tmp_path)
    assert {file.name: file.read_bytes() for file in suspect.iterdir()} == before
    assert summary["num_trusted"] == 21
    assert summary["steps"] == 8
    assert pq.read_table(tmp_path / "trusted.parquet") == select(dataset.samples, 0.5, 0)
    student, teacher = load_backbone(tmp_path), load_backbone(suspect)
    assert isinstance(student, ResNet)
    assert isinstance(teacher, ResNet)
    assert student.spec == teacher.spec
    assert load_file(tmp_path / "backbone.safetensors").keys() == teacher.state_dict().keys()
    assert not torch.allclose(student.conv1.weight, teacher.conv1.weight, atol=0.05)
    assert pq.read_table(tmp_path / "curves.parquet").num_rows == 8


def test_only_trusted_images_are_read(dataset: Any, suspect: Path, tmp_path: Path) -> None:
    """With every other image's bytes broken the defence gives the same student."""
    run(dataset, suspect, tmp_path)
    trusted = set(pq.read_table(tmp_path / "trusted.parquet")["key"].to_pylist())
    broken = tiny_dataset(tmp_path / "broken", train_per_class=14, size=(12, 12))
    for row in broken.samples.to_pylist():
        if row["key"] not in trusted:
            with (broken.folder / row["shard"]).open("r+b") as shard:
                shard.seek(row["offset"])
                shard.write(bytes(row["size"]))
    again = tmp_path / "again"
    again.mkdir()
    run(broken, suspect, again)
    name = "backbone.safetensors"
    assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_too_few_trusted_images(dataset: Any, suspect: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"needs 8 trusted images, but trusted_fraction 0\.1 gives 3"):
        run(dataset, suspect, tmp_path, trusted_fraction=0.1)


def test_no_suspect(dataset: Any, suspect: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected backbone\.json"):
        run(dataset, tmp_path, tmp_path)
