import math
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import NarrowShortcut, ResNet, SplitBatchNorm, batch_norm_1d, batch_norm_2d
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ResNetSpec


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(0, "images"))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("training", [False, True])
def test_equals_torchvision(depth: Any, training: bool) -> None:
    theirs: Any = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    theirs.fc = nn.Identity()
    ours = build_backbone(ResNetSpec(depth=depth), 1, 3)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())  # ours into theirs
    theirs.bn1.running_mean.fill_(0.3)
    ours.load_state_dict(theirs.state_dict())  # and back
    ours.train(training)
    theirs.train(training)
    x = images(4, 3, 48, 48)
    torch.testing.assert_close(ours(x), theirs(x))
    for name, value in theirs.state_dict().items():  # also the running statistics moved alike
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(
    ("depth", "stem", "feature_dim", "last_side"),
    [(8, "small", 32, 4), (10, "small", 64, 2), (18, "imagenet", 64, 1), (50, "small", 256, 2)],
)
def test_shapes(depth: Any, stem: Any, feature_dim: int, last_side: int) -> None:
    network = build_backbone(ResNetSpec(depth=depth, width=8, stem=stem), 1, 0)
    sides = []
    last = network.get_submodule(f"layer{network.num_stages}")
    last.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    assert network(images(2, 3, 16, 16)).shape == (2, feature_dim)
    assert network.feature_dim == feature_dim
    assert sides == [last_side]


def test_weights_come_from_their_stream_alone() -> None:
    spec = ResNetSpec(depth=18, width=32)
    before = torch.get_rng_state()
    one, same, other = (build_backbone(spec, 1, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(one["conv1.weight"], build_backbone(spec, 1, 1, "student").conv1.weight)
    weight = one["layer4.1.conv2.weight"]  # torchvision's initialisation: normal, variance 2 / fan out
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)


def test_grouped_batch_norm_normalises_each_group_alone() -> None:
    norm = SplitBatchNorm(3, 2).train()
    x = images(6, 3, 5, 4) * torch.arange(1, 7).view(6, 1, 1, 1)
    y = norm(x)
    for group in (slice(0, 3), slice(3, 6)):
        part = x[group].double()
        mean, variance = part.mean((0, 2, 3)), part.var((0, 2, 3), unbiased=False)
        expected = (part - mean.view(3, 1, 1)) / (variance.view(3, 1, 1) + 1e-5).sqrt()
        torch.testing.assert_close(y[group], expected.float(), rtol=1e-4, atol=1e-5)
    means = torch.stack([x[:3].mean((0, 2, 3)), x[3:].mean((0, 2, 3))])
    variances = torch.stack([x[:3].transpose(0, 1).flatten(1).var(1), x[3:].transpose(0, 1).flatten(1).var(1)])
    torch.testing.assert_close(norm.running_mean, 0.1 * means.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances.mean(0))
    assert norm.num_batches_tracked.item() == 1


def test_grouped_batch_norm_evaluates_as_batch_norm_and_shares_its_names() -> None:
    grouped, plain = SplitBatchNorm(3, 2), nn.BatchNorm2d(3)
    grouped(images(4, 3, 5, 5))
    plain.load_state_dict(grouped.state_dict())
    x = images(3, 3, 5, 5)  # an odd batch: no groups in evaluation
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x))


def test_one_group_is_pytorchs_own() -> None:
    assert type(batch_norm_2d(4, 1)) is nn.BatchNorm2d
    assert type(batch_norm_1d(4, 1)) is nn.BatchNorm1d
    rows = images(6, 4)
    expected = torch.cat([nn.BatchNorm1d(4)(part) for part in rows.chunk(3)])
    torch.testing.assert_close(batch_norm_1d(4, 3)(rows), expected)


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(SpecError, match="5 images does not split into 2"):
        ResNet(ResNetSpec(depth=8, width=4, stem="small"), 2)(images(5, 3, 8, 8))


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_a_strided_shortcut_is_the_convolution_it_stands_for(channels: int) -> None:
    """Channels last and 8 channels or fewer, oneDNN's own backward pass ends the process at this size."""
    network = ResNet(ResNetSpec(depth=8, width=channels, stem="small"))
    shortcut: Any = network.get_submodule("layer2.0.downsample.0")
    assert isinstance(shortcut, NarrowShortcut) == (channels <= 8)
    pixels = images(2, channels, 64, 63)
    weight = shortcut.weight.detach().clone().requires_grad_()
    torch.nn.functional.conv2d(pixels.requires_grad_(), weight, stride=2).square().sum().backward()
    shortcut.to(memory_format=torch.channels_last)
    x = pixels.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    shortcut(x).square().sum().backward()
    torch.testing.assert_close(x.grad, pixels.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shortcut.weight.grad, weight.grad, rtol=1e-4, atol=1e-2)
