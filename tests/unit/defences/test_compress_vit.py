"""The defence on a suspect that is a vision transformer."""

from pathlib import Path

import pytest
import torch

from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.vit import ViT
from ssl_backdoor.progress import silent
from ssl_backdoor.specs import Resources, StageContext
from ssl_backdoor.train.checkpoint import NoCheckpoints, load_backbone, save_backbone
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import VIT, compress_spec


@pytest.mark.parametrize("num_queues", [1, 2])
def test_a_transformer_is_distilled_into_a_fresh_one(tmp_path: Path, num_queues: int) -> None:
    dataset = tiny_dataset(tmp_path / "data", train_per_class=14, size=(12, 12))
    suspect, out = tmp_path / "suspect", tmp_path / "out"
    suspect.mkdir()
    out.mkdir()
    save_backbone(build_backbone(VIT, 1, 5), 1, suspect)
    spec = compress_spec(num_queues, epochs=4)
    summary = spec.repair(dataset, suspect, StageContext(out, 0, Resources(device="cpu"), NoCheckpoints(), silent))
    assert (summary["steps"], summary["num_trusted"]) == (8, 21)
    teacher, student = load_backbone(suspect), load_backbone(out)
    assert isinstance(student, ViT)
    assert student.spec == teacher.spec == VIT
    assert not torch.allclose(student.cls_token, teacher.state_dict()["cls_token"], atol=0.01)
