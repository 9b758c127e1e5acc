"""Residual networks with torchvision's parameter names, and BatchNorm as if on several devices.

He et al. 2015, https://arxiv.org/abs/1512.03385; layout and names of torchvision.models.resnet (v1.5: the stride of a
bottleneck sits in its 3x3 convolution). A ``state_dict`` loads both ways where the shapes agree, ``fc.*`` aside.
"""

import math
from collections.abc import Callable
from typing import TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import ResNetSpec

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@final
class SplitBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose training statistics are taken over each of ``groups`` contiguous parts of the batch.

    Input (B, C) or (B, C, H, W) with B divisible by ``groups``. The running statistics follow the mean of the groups'.

    NOTE: under DistributedDataParallel the published statistics are those of the first device; the mean over the
    devices has less noise and does not depend on how groups are spread over replicas.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int, groups: int):
        super().__init__(num_features)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, group by group in training mode."""
        mean, variance = self.running_mean, self.running_var
        if not self.training:
            return F.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
        if len(input) % self.groups:
            raise SpecError(f"a batch of {len(input)} images does not split into {self.groups} bn_groups")
        means, variances = mean.repeat(self.groups, 1), variance.repeat(self.groups, 1)
        parts = [
            F.batch_norm(part, means[g], variances[g], self.weight, self.bias, True, self.momentum, self.eps)
            for g, part in enumerate(input.chunk(self.groups))
        ]
        mean.copy_(means.mean(0))
        variance.copy_(variances.mean(0))
        self.num_batches_tracked.add_(1)
        return torch.cat(parts)


def batch_norm_2d(channels: int, groups: int) -> nn.Module:
    """BatchNorm for (B, C, H, W); one group is PyTorch's own, at its own speed."""
    return nn.BatchNorm2d(channels) if groups == 1 else SplitBatchNorm(channels, groups)


def batch_norm_1d(channels: int, groups: int) -> nn.Module:
    """BatchNorm for (B, C); one group is PyTorch's own, at its own speed."""
    return nn.BatchNorm1d(channels) if groups == 1 else SplitBatchNorm(channels, groups)


@final
class NarrowShortcut(nn.Conv2d):
    """A strided 1x1 convolution as every ``stride``-th pixel, then a plain one: the same numbers.

    oneDNN's backward pass for strided 1x1 filters on 8 channels or fewer, channels last, writes past its buffers (torch
    2.15, AVX-512): images of 48 px crash, and smaller ones may do harm unseen.
    """

    MAX_CHANNELS = 8

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        step, across = self.stride
        return F.conv2d(input[:, :, ::step, ::across], self.weight)


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    if kernel == 1 and stride > 1 and channels_in <= NarrowShortcut.MAX_CHANNELS:
        return NarrowShortcut(channels_in, channels, 1, stride, bias=False)
    return nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, groups: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = _conv(channels_in, channels, 3, stride)
        self.bn1 = batch_norm_2d(channels, groups)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = batch_norm_2d(channels, groups)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)).add_(shortcut), inplace=True)


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, groups: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = _conv(channels_in, channels, 1)
        self.bn1 = batch_norm_2d(channels, groups)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = batch_norm_2d(channels, groups)
        self.conv3 = _conv(channels, channels * self.expansion, 1)
        self.bn3 = batch_norm_2d(channels * self.expansion, groups)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 * channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)).add_(shortcut), inplace=True)


@final
class ResNet(nn.Module):
    """A residual network up to its average pool; ``bn_groups`` as in ``SplitBatchNorm``."""

    def __init__(self, spec: ResNetSpec, bn_groups: int = 1):
        super().__init__()
        self.spec = spec
        self.bn_groups = bn_groups
        block = Bottleneck if spec.depth == 50 else BasicBlock
        imagenet = spec.stem == "imagenet"
        self.conv1 = _conv(3, spec.width, 7, 2) if imagenet else _conv(3, spec.width, 3)
        self.bn1 = batch_norm_2d(spec.width, bn_groups)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        channels_in = spec.width
        self.num_stages = len(spec.stages)
        for stage, num_blocks in enumerate(spec.stages):
            channels = spec.width * 2**stage
            layer = nn.Sequential()
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                channels_out = channels * block.expansion
                downsample = None
                if stride > 1 or channels_in != channels_out:
                    downsample = nn.Sequential(
                        _conv(channels_in, channels_out, 1, stride), batch_norm_2d(channels_out, bn_groups)
                    )
                layer.append(block(channels_in, channels, stride, bn_groups, downsample))
                channels_in = channels_out
            self.add_module(f"layer{stage + 1}", layer)
        self.feature_dim = channels_in

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, feature_dim)."""
        x: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        for stage in range(self.num_stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean((2, 3))


def allocate_on_cpu(module: nn.Module) -> None:
    """``module.to_empty(device="cpu")`` of a module on "meta", without SymPy, which that imports for half a second."""
    allocate: Callable[[Callable[[Tensor], Tensor]], nn.Module] = module._apply
    allocate(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))


def build_with_torchvision_init(build: Callable[[], ModuleT], generator: torch.Generator) -> ModuleT:
    """``build()`` with weights drawn from ``generator`` alone; the global generator is neither read nor moved.

    Convolutions as torchvision's ResNet (Kaiming normal, fan out), linear layers and BatchNorm as PyTorch's defaults.
    """
    with torch.device("meta"):
        module = build()
    allocate_on_cpu(module)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(part.in_features)
            nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.reset_parameters()
    return module
