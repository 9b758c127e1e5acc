import functools
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods import vit
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.vit import LAYER_NORM_EPS, ViT, sine_cosine_positions
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import FitSpec, TrainSpec, ViewsSpec, ViTSpec
from ssl_backdoor.train.checkpoint import load_backbone, save_backbone
from tests.support.tiny_training import BACKBONE, METHODS, TOWERS, VIT

CPU = torch.device("cpu")


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch_generator(0, "images"))


# ---------------------------------------------------------------------------------------------------- positions


def test_positions_are_maes_place_by_place() -> None:
    dim, rows, columns = 16, 3, 2
    found = sine_cosine_positions(dim, rows, columns, CPU)
    assert (found.dtype, found.shape) == (torch.float32, (rows * columns, dim))
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (column, row):
                angles = [place / 10_000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert found[row * columns + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_first_place_is_sine_and_cosine_of_zero() -> None:
    assert sine_cosine_positions(8, 4, 4, CPU)[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_positions_first_made_for_an_evaluation_serve_a_training() -> None:
    sine_cosine_positions.cache_clear()
    network = build_backbone(VIT, 1, 0)
    with torch.inference_mode():
        network(images(2, 8, 8))
    network(images(2, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# ---------------------------------------------------------------------------------------------------- network


def as_timm(network: ViT, height: int, width: int) -> Any:
    """Timm's own network with the weights and positions of ours."""
    spec = network.spec
    theirs = VisionTransformer(
        img_size=(height, width),
        patch_size=spec.patch_px,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        num_classes=0,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=LAYER_NORM_EPS),
    )
    grid = (height // spec.patch_px, width // spec.patch_px)
    positions = sine_cosine_positions(spec.embed_dim, *grid, CPU)
    class_position = torch.zeros(1, spec.embed_dim)
    theirs.load_state_dict({**network.state_dict(), "pos_embed": torch.cat([class_position, positions])[None]})
    return theirs


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 20), (32, 32)])
def test_features_are_the_mean_of_timms_normalised_patch_tokens(height: int, width: int) -> None:
    network = build_backbone(VIT, 1, 0)
    batch = images(3, height, width)
    tokens = as_timm(network, height, width).forward_features(batch)
    features = network(batch)
    assert features.shape == (3, network.feature_dim) == (3, 16)
    torch.testing.assert_close(features, tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(12, 10), (10, 12), (3, 3)])
def test_sides_that_the_patch_does_not_divide(height: int, width: int) -> None:
    with pytest.raises(
        SpecError, match=rf"patches of 4 px reads .* found {width} x {height} px; set fit.views.size_px"
    ):
        build_backbone(VIT, 1, 0)(images(2, height, width))


def test_weights_are_xavier_uniform_and_tokens_normal() -> None:
    network = build_backbone(ViTSpec(patch_px=4, embed_dim=512, depth=1, num_heads=4), 1, 0)
    matrices = {name: value for name, value in network.named_parameters() if value.ndim in {2, 4}}
    assert len(matrices) == 5  # patches, attention in and out, two of the hidden layer
    for weight in matrices.values():
        bound = math.sqrt(6 / (weight[0].numel() + len(weight)))
        assert bound * 0.99 < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    patch_bias = network.get_parameter("patch_embed.proj.bias").abs().max().item()
    assert 0.9 / math.sqrt(48) < patch_bias <= 1 / math.sqrt(48)
    assert network.cls_token.std().item() == pytest.approx(0.02, rel=0.1)
    for name, value in network.named_parameters():
        if "norm" in name:
            assert (value == float(name.endswith("weight"))).all()
        elif name.endswith("bias") and "patch" not in name:
            assert not value.any()


def test_weights_follow_from_seed_and_role_alone() -> None:
    torch.rand(3)
    before = torch.get_rng_state()
    states = [build_backbone(VIT, groups, seed, role) for groups, seed, role in ((1, 0, "a"), (2, 0, "a"))]
    others = [build_backbone(VIT, 1, seed, role) for seed, role in ((1, "a"), (0, "b"))]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, states[1].state_dict()[name]) for name, value in states[0].state_dict().items())
    assert not any(torch.equal(states[0].cls_token, other.cls_token) for other in others)
    assert [state.bn_groups for state in states] == [1, 2]


def test_a_saved_transformer_comes_back(tmp_path: Path) -> None:
    network = build_backbone(VIT, 1, 3)
    save_backbone(network, 2, tmp_path)
    loaded = load_backbone(tmp_path)
    assert isinstance(loaded, ViT)
    assert loaded.spec == VIT
    assert not loaded.training
    assert torch.equal(loaded(images(2, 8, 8)), network(images(2, 8, 8)))


# ---------------------------------------------------------------------------------------------------- timm, specs


def test_without_timm_there_is_a_sentence_and_the_other_networks_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(SpecError, match=r"needs timm, but .*run: pip install 'ssl-backdoor\[vision\]'"):
        build_backbone(VIT, 1, 0)
    assert build_backbone(BACKBONE, 1, 0)(images(2, 8, 8)).shape == (2, 16)


def test_the_module_is_imported_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    spec = importlib.util.spec_from_file_location("vit_without_timm", vit.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.sine_cosine_positions(8, 2, 2, CPU).shape == (4, 8)


@pytest.mark.parametrize(
    ("kind", "backbone", "wanted"),
    [
        ("mae", BACKBONE, "vit"),
        ("mae", TOWERS, "vit"),
        ("clip", VIT, "open_clip"),
        ("clip", BACKBONE, "open_clip"),
        ("byol", VIT, "resnet"),
        ("moco_v2", TOWERS, "resnet"),
    ],
)
def test_a_method_names_the_backbone_that_it_trains(kind: str, backbone: Any, wanted: str) -> None:
    sentence = f"{kind} trains a backbone of kind {wanted}, found {backbone.kind}; set train.backbone.kind to {wanted}"
    with pytest.raises(ValidationError, match=sentence):
        TrainSpec(method=METHODS[kind], backbone=backbone, fit=FitSpec(views=ViewsSpec(size_px=12)))


def test_views_that_the_patch_does_not_divide_are_refused_before_any_work() -> None:
    with pytest.raises(ValidationError, match="size_px 14 must be a multiple of patch_px 4"):
        TrainSpec(method=METHODS["mae"], backbone=VIT, fit=FitSpec(views=ViewsSpec(size_px=14)))
