"""Specs to networks. The union that types a spec is the list of methods: there is no registry."""

from typing import assert_never

from ssl_backdoor.methods.backbones import ResNet, initialised
from ssl_backdoor.methods.base import Alone, Replicas, SSLMethod
from ssl_backdoor.methods.byol import BYOL
from ssl_backdoor.methods.moco_v2 import MoCoV2
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import BYOLSpec, MoCoV2Spec, ResNetSpec, TrainSpec


def build_backbone(spec: ResNetSpec, bn_groups: int, seed: int, role: str = "backbone") -> ResNet:
    """A fresh backbone on the CPU, drawn from the stream ``role`` under ``seed``; ``bn_groups`` of one replica."""
    return initialised(lambda: ResNet(spec, bn_groups), torch_generator(seed, role))


def build_method(spec: TrainSpec, seed: int, replicas: Replicas | None = None) -> SSLMethod:
    """The method of ``spec`` on the CPU, with its fresh networks; equal on every replica."""
    replicas = replicas or Alone()
    backbone = build_backbone(spec.backbone, spec.fit.bn_groups // replicas.count, seed)
    match spec.method:
        case MoCoV2Spec():
            return MoCoV2(spec.method, backbone, seed, replicas)
        case BYOLSpec():
            return BYOL(spec.method, backbone, spec.fit.epochs, seed)
        case _:
            assert_never(spec.method)
