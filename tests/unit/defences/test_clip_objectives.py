"""The objectives of the two defences of CLIP against slow NumPy from the papers, and against open_clip."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import DistillClipLoss
from torch import nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import SingleProcess
from tests.support.tiny_defences import build_cleanclip, build_distillation, pairs

torch.set_num_threads(1)


def units(tower: nn.Module, rows: torch.Tensor) -> np.ndarray:
    """Unit embeddings, float64, from a copy: running statistics stay."""
    with torch.no_grad():
        found = copy.deepcopy(tower)(rows).double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def log_softmax(logits: list[float]) -> list[float]:
    total = sum(np.exp(value) for value in logits)
    return [value - np.log(total) for value in logits]


def cross_entropy(rows: np.ndarray, columns: np.ndarray, scale: float, wanted: np.ndarray) -> float:
    """Mean over rows of ``-sum_j wanted_ij log softmax(scale row_i . column_j)``."""
    total = 0.0
    for i in range(len(rows)):
        logs = log_softmax([scale * float(rows[i] @ column) for column in columns])
        total -= sum(wanted[i, j] * logs[j] for j in range(len(columns)))
    return total / len(rows)


def softmax_rows(rows: np.ndarray, columns: np.ndarray, scale: float) -> np.ndarray:
    return np.array([np.exp(log_softmax([scale * float(row @ column) for column in columns])) for row in rows])


# ---------------------------------------------------------------------------------------------- distil_image_tower


def test_mimicry_is_that_of_the_formula_and_of_open_clip() -> None:
    method = build_distillation(SingleProcess()).train()
    batch = pairs(1, method.text_tower)
    assert batch.tokens is not None
    student = units(method.backbone, batch.views[0])
    teacher, captions = units(method.teacher[0], batch.views[0]), units(method.text_tower, batch.tokens)
    scale = method.text_tower.logit_scale.exp().item()
    expected = 0.0
    least = 0.0
    for first, second, other in ((teacher, captions, student), (captions, teacher, None)):
        wanted = softmax_rows(first, second, scale)
        rows, columns = (student, captions) if other is not None else (captions, student)
        expected += cross_entropy(rows, columns, scale, wanted) / 2
        least += cross_entropy(first, second, scale, wanted) / 2
    output = method.loss(batch)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.logs["divergence"].item() == pytest.approx(expected - least, rel=1e-3)

    s, t, c = (torch.from_numpy(rows).float() for rows in (student, teacher, captions))
    _, theirs = DistillClipLoss()(s, c, torch.tensor(scale), t, c, torch.tensor(scale))
    assert output.loss.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_student_equal_to_its_teacher_diverges_by_nothing_and_is_not_moved() -> None:
    method = build_distillation(SingleProcess()).train()
    method.backbone = copy.deepcopy(method.teacher[0]).requires_grad_(True)
    output = method.loss(pairs(1, method.text_tower))
    output.loss.backward()
    assert output.logs["divergence"].item() == pytest.approx(0, abs=1e-6)
    assert max(float(parameter.grad.abs().max()) for parameter in method.backbone.parameters()) < 1e-5


def test_teacher_and_text_tower_stay_frozen_and_out_of_the_state() -> None:
    method = build_distillation(SingleProcess()).train()
    towers = (method.teacher[0], method.text_tower)
    before = [{name: value.clone() for name, value in tower.state_dict().items()} for tower in towers]
    student = copy.deepcopy(method.backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        method.loss(pairs(1, method.text_tower, step)).loss.backward()
        optimizer.step()
        method.after_step(0.0)
    for tower, values in zip(towers, before, strict=True):
        assert not tower.training
        assert all(torch.equal(value, values[name]) for name, value in tower.state_dict().items())
    assert {name.split(".")[0] for name in method.state_dict()} == {"backbone"}
    assert any(not torch.equal(value, student[name]) for name, value in method.backbone.state_dict().items())


# ---------------------------------------------------------------------------------------------- cleanclip


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_cleanclip_is_that_of_the_formula(weight: float) -> None:
    method = build_cleanclip(SingleProcess(), in_modal_weight=weight).train()
    batch = pairs(2, method.text_tower, step=3)
    assert batch.tokens is not None
    twins = method.edits(batch.tokens, 3, SingleProcess())
    image, image_twin = (units(method.backbone, view) for view in batch.views)
    text, text_twin = units(method.text, batch.tokens), units(method.text, twins)
    scale, own = method.text.logit_scale.exp().item(), np.eye(8)
    cross = (cross_entropy(image, text, scale, own) + cross_entropy(text, image, scale, own)) / 2
    of_images = cross_entropy(image, image_twin, scale, own)
    of_captions = cross_entropy(text, text_twin, scale, own)
    output = method.loss(batch)
    assert output.loss.item() == pytest.approx(cross + weight * (of_images + of_captions) / 2, rel=1e-5)
    logs = {name: value.item() for name, value in output.logs.items()}
    assert logs == pytest.approx({"cross_modal": cross, "in_modal_image": of_images, "in_modal_text": of_captions})


def test_edits_are_of_the_step_and_of_whole_words() -> None:
    method = build_cleanclip(SingleProcess())
    tokens = pairs(2, method.text_tower).tokens
    assert tokens is not None
    decode = method.text_tower.tokenizer.decode
    first, again, other = (method.edits(tokens, step, SingleProcess()) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for before, after in zip(tokens.tolist(), first.tolist(), strict=True):
        words, edited = (decode([t for t in line if t][1:-1]).split() for line in (before, after))
        assert set(edited) <= set(words)
        assert edited != words


def test_every_parameter_learns_and_the_scale_is_held() -> None:
    method = build_cleanclip(SingleProcess()).train()
    method.loss(pairs(2, method.text_tower)).loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    with torch.no_grad():
        method.text.logit_scale.fill_(9.0)
    method.after_step(0.0)
    assert method.text.logit_scale.exp().item() == pytest.approx(100)


# ---------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("build", [build_distillation, build_cleanclip])
def test_a_batch_that_does_not_fit_is_refused(build: object) -> None:
    assert callable(build)
    method = build(SingleProcess()).train()
    batch = pairs(method.num_views, method.text_tower)
    with pytest.raises(SpecError, match="expected a caption for each of 8 images, found none"):
        method.loss(batch._replace(tokens=None))
    with pytest.raises(SpecError, match=rf"expected {method.num_views} view\(s\)"):
        method.loss(batch._replace(views=(*batch.views, batch.views[0])))


@pytest.mark.parametrize("build", [build_distillation, build_cleanclip])
def test_bfloat16_is_close_and_the_loss_float32(build: object) -> None:
    assert callable(build)
    whole, half = build(SingleProcess()).train(), build(SingleProcess()).train()
    batch = pairs(whole.num_views, whole.text_tower)
    expected = whole.loss(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = half.loss(batch).loss
    assert found.dtype == torch.float32
    assert not F.mse_loss(found, expected).item() > 0.01
    assert found.item() == pytest.approx(expected.item(), rel=0.05)
