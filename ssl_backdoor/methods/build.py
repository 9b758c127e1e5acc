"""Specs to networks. The union that types a spec is the list of methods: there is no registry."""

from typing import assert_never, overload

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import ResNet, initialised
from ssl_backdoor.methods.base import Alone, Backbone, Replicas, SSLMethod
from ssl_backdoor.methods.byol import BYOL
from ssl_backdoor.methods.clip import CLIP
from ssl_backdoor.methods.clip_towers import build_towers
from ssl_backdoor.methods.moco_v2 import MoCoV2
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import BackboneSpec, BYOLSpec, CLIPSpec, MoCoV2Spec, OpenCLIPSpec, ResNetSpec, TrainSpec


@overload
def build_backbone(spec: ResNetSpec, bn_groups: int, seed: int, role: str = "backbone") -> ResNet: ...
@overload
def build_backbone(spec: BackboneSpec, bn_groups: int, seed: int, role: str = "backbone") -> Backbone: ...
def build_backbone(spec: BackboneSpec, bn_groups: int, seed: int, role: str = "backbone") -> Backbone:
    """A fresh backbone on the CPU, drawn from the stream ``role`` under ``seed``; ``bn_groups`` of one replica."""
    if isinstance(spec, ResNetSpec):
        return initialised(lambda: ResNet(spec, bn_groups), torch_generator(seed, role))
    return build_towers(spec, seed, role, bn_groups)[0]


def build_method(spec: TrainSpec, seed: int, replicas: Replicas | None = None) -> SSLMethod:
    """The method of ``spec`` on the CPU, with its fresh networks; equal on every replica."""
    replicas = replicas or Alone()
    method, backbone, groups = spec.method, spec.backbone, spec.fit.bn_groups // replicas.count
    match method:
        case CLIPSpec():
            if isinstance(backbone, OpenCLIPSpec):
                # Micro-batches are the groups where there are some.
                towers = build_towers(backbone, seed, bn_groups=1 if method.micro_batch_size else groups)
                return CLIP(method, *towers, replicas)
        case MoCoV2Spec():
            if isinstance(backbone, ResNetSpec):
                return MoCoV2(method, build_backbone(backbone, groups, seed), seed, replicas)
        case BYOLSpec():
            if isinstance(backbone, ResNetSpec):
                return BYOL(method, build_backbone(backbone, groups, seed), spec.fit.epochs, seed)
        case _:
            assert_never(method)
    raise SpecError(f"method {method.kind} cannot train a backbone of kind {backbone.kind}; clip takes open_clip")
