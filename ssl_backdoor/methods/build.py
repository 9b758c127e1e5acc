"""Specs to backbones."""

from typing import Literal, TypeAlias, overload

import torch
from torch import nn

from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.clip_towers import ImageTower, build_towers, load_open_clip, tower_config
from ssl_backdoor.methods.external import External, build_external, num_external_bytes
from ssl_backdoor.methods.vit import ViT, build_with_mae_init
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import BackboneSpec, ExternalSpec, ResNetSpec, ViTSpec

Backbone: TypeAlias = ResNet | ImageTower | ViT | External


@overload
def build_backbone(spec: ResNetSpec, bn_groups: int, seed: int, role: str = "backbone") -> ResNet: ...
@overload
def build_backbone(spec: ViTSpec, bn_groups: int, seed: int, role: str = "backbone") -> ViT: ...
@overload
def build_backbone(spec: ExternalSpec, bn_groups: int, seed: int, role: str = "backbone") -> External: ...
@overload
def build_backbone(
    spec: ResNetSpec | ViTSpec | ExternalSpec, bn_groups: int, seed: int, role: str = "backbone"
) -> ResNet | ViT | External: ...
@overload
def build_backbone(spec: BackboneSpec, bn_groups: int, seed: int, role: str = "backbone") -> Backbone: ...
def build_backbone(spec: BackboneSpec, bn_groups: int, seed: int, role: str = "backbone") -> Backbone:
    """A fresh backbone on the CPU, drawn from the stream ``role`` under ``seed``; ``bn_groups`` of one replica."""
    if isinstance(spec, ResNetSpec):
        return build_with_torchvision_init(lambda: ResNet(spec, bn_groups), torch_generator(seed, role))
    if isinstance(spec, ViTSpec):
        return build_with_mae_init(lambda: ViT(spec, bn_groups), torch_generator(seed, role))
    if isinstance(spec, ExternalSpec):
        return build_external(spec, bn_groups, seed, role)
    return build_towers(spec, seed, role, bn_groups)[0]


def num_weight_bytes(spec: BackboneSpec, part: Literal["backbone", "text"] = "backbone") -> int:
    """Bytes of the weights and buffers of a network, or of the text tower beside it, without making them.

    Raises:
        SpecError: it is a tower of CLIP and open_clip is missing, or cannot be made.
    """
    network: nn.Module
    if isinstance(spec, ExternalSpec):
        return num_external_bytes(spec)
    with torch.device("meta"):
        if isinstance(spec, ResNetSpec):
            network = ResNet(spec, 1)
        elif isinstance(spec, ViTSpec):
            network = ViT(spec, 1)
        else:
            model = load_open_clip().CustomTextCLIP(**tower_config(spec.config))
            network = model.visual if part == "backbone" else model.text
    return sum(value.nbytes for value in network.state_dict().values())
