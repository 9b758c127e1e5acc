"""Specs to networks. The union that types a spec is the list of methods: there is no registry."""

from typing import assert_never, overload

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.base import Backbone, Replicas, SingleProcess, SSLMethod
from ssl_backdoor.methods.byol import BYOL
from ssl_backdoor.methods.clip import CLIP
from ssl_backdoor.methods.clip_towers import build_towers
from ssl_backdoor.methods.jigsaw import Jigsaw
from ssl_backdoor.methods.mae import MAE
from ssl_backdoor.methods.moco_v2 import MoCoV2
from ssl_backdoor.methods.msf import MSF
from ssl_backdoor.methods.rotnet import RotNet
from ssl_backdoor.methods.simclr import SimCLR
from ssl_backdoor.methods.simsiam import SimSiam
from ssl_backdoor.methods.vit import ViT, build_with_mae_init
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import (
    BackboneSpec,
    BYOLSpec,
    CLIPSpec,
    JigsawSpec,
    MAESpec,
    MoCoV2Spec,
    MSFSpec,
    OpenCLIPSpec,
    ResNetSpec,
    RotNetSpec,
    SimCLRSpec,
    SimSiamSpec,
    TrainSpec,
    ViewsSpec,
    ViTSpec,
)

ResNetMethodSpec = MoCoV2Spec | BYOLSpec | MSFSpec | SimCLRSpec | SimSiamSpec | RotNetSpec | JigsawSpec


@overload
def build_backbone(spec: ResNetSpec, bn_groups: int, seed: int, role: str = "backbone") -> ResNet: ...
@overload
def build_backbone(spec: ViTSpec, bn_groups: int, seed: int, role: str = "backbone") -> ViT: ...
@overload
def build_backbone(spec: BackboneSpec, bn_groups: int, seed: int, role: str = "backbone") -> Backbone: ...
def build_backbone(spec: BackboneSpec, bn_groups: int, seed: int, role: str = "backbone") -> Backbone:
    """A fresh backbone on the CPU, drawn from the stream ``role`` under ``seed``; ``bn_groups`` of one replica."""
    if isinstance(spec, ResNetSpec):
        return build_with_torchvision_init(lambda: ResNet(spec, bn_groups), torch_generator(seed, role))
    if isinstance(spec, ViTSpec):
        return build_with_mae_init(lambda: ViT(spec, bn_groups), torch_generator(seed, role))
    return build_towers(spec, seed, role, bn_groups)[0]


def build_method(spec: TrainSpec, seed: int, replicas: Replicas | None = None) -> SSLMethod:
    """The method of ``spec`` on the CPU, with its fresh networks; equal on every replica."""
    replicas = replicas or SingleProcess()
    method, backbone, groups = spec.method, spec.backbone, spec.fit.bn_groups // replicas.count
    if isinstance(method, CLIPSpec):
        if isinstance(backbone, OpenCLIPSpec):
            # Micro-batches are the groups where there are some.
            towers = build_towers(backbone, seed, bn_groups=1 if method.micro_batch_size else groups)
            return CLIP(method, *towers, replicas)
    elif isinstance(method, MAESpec):
        if isinstance(backbone, ViTSpec):
            return MAE(method, build_backbone(backbone, groups, seed), seed, replicas)
    elif isinstance(backbone, ResNetSpec):
        return _on_resnet(method, build_backbone(backbone, groups, seed), spec.fit.epochs, seed, replicas)
    raise SpecError(f"method {method.kind} cannot train a backbone of kind {backbone.kind}")


def _on_resnet(method: ResNetMethodSpec, backbone: ResNet, epochs: int, seed: int, replicas: Replicas) -> SSLMethod:
    match method:
        case MoCoV2Spec():
            return MoCoV2(method, backbone, seed, replicas)
        case BYOLSpec():
            return BYOL(method, backbone, epochs, seed)
        case MSFSpec():
            return MSF(method, backbone, seed, replicas)
        case SimCLRSpec():
            return SimCLR(method, backbone, seed, replicas)
        case SimSiamSpec():
            return SimSiam(method, backbone, seed, replicas)
        case RotNetSpec():
            return RotNet(method, backbone, seed, replicas)
        case JigsawSpec():
            return Jigsaw(method, backbone, seed, replicas)
        case _:
            assert_never(method)


def view_specs(spec: TrainSpec) -> tuple[ViewsSpec, ...]:
    """The views of one image that the method of ``spec`` is given, in its order; empty: all are ``fit.views``."""
    if isinstance(spec.method, MSFSpec) and spec.method.weak_target:
        crop_and_flip = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0}
        return spec.fit.views, spec.fit.views.model_copy(update=crop_and_flip)
    return ()
