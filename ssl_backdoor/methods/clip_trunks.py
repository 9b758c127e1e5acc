"""The image networks of our own tiny CLIP configurations, for timm's list, where open_clip's adapter finds them.

Importing this module imports timm; ``register_timm_models`` registers them. The ResNet is the one that the
other methods train (``methods/backbones.py``).
"""

from typing import Any, ClassVar, final

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.specs import ResNetSpec


@final
class TimmResNet(nn.Module):
    """A ``ResNet`` with what open_clip asks of a timm model."""

    default_cfg: ClassVar[dict[str, Any]] = {}  # timm reads it

    def __init__(self, width: int):
        super().__init__()
        spec = ResNetSpec(depth=8, width=width, stem="small")
        # Drawn from torch's default generator, as all of open_clip: build_towers sets and restores it.
        self.network = build_with_torchvision_init(lambda: ResNet(spec), torch.default_generator)
        self.num_features = self.network.feature_dim

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Do nothing: there is no classifier to remove."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, num_features)."""
        features: Tensor = self.network(images)
        return features


def ssl_backdoor_resnet8_w8(**_: Any) -> nn.Module:
    """Three stages of one basic block, 3x3 stem of stride 1, 8 channels in the first stage."""
    return TimmResNet(8)


def ssl_backdoor_resnet8_w16(**_: Any) -> nn.Module:
    """The same with 16 channels."""
    return TimmResNet(16)


def ssl_backdoor_resnet8_w32(**_: Any) -> nn.Module:
    """The same with 32 channels."""
    return TimmResNet(32)


def ssl_backdoor_resnet8_w64(**_: Any) -> nn.Module:
    """The same with 64 channels."""
    return TimmResNet(64)


def ssl_backdoor_vit_p4(**_: Any) -> Any:
    """The vision transformer of timm on patches of 4 px; its position embedding is resampled to the image's side."""
    network: Any = VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=64,
        depth=2,
        num_heads=2,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        dynamic_img_size=True,
    )
    network.default_cfg = {}
    return network


def register_timm_models() -> None:
    """Register the networks with timm, under the names that the configurations use."""
    for make in (
        ssl_backdoor_resnet8_w8,
        ssl_backdoor_resnet8_w16,
        ssl_backdoor_resnet8_w32,
        ssl_backdoor_resnet8_w64,
        ssl_backdoor_vit_p4,
    ):
        register_model(make)
