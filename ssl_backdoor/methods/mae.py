"""MAE (He et al. 2021), https://arxiv.org/abs/2111.06377: a masked autoencoder.

Compared with https://github.com/facebookresearch/mae/blob/6a2ba40/models_mae.py. The encoder sees a random few of an
image's patches; a small decoder predicts the pixels of the others from the encoder's output and their positions.

Shapes: b images of this replica, B of all replicas, N patches, n of them visible, p px patch, D and E embedding of
encoder and decoder.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, views_of
from ssl_backdoor.methods.vit import (
    LAYER_NORM_EPS,
    ViT,
    build_with_mae_init,
    grid_of,
    sine_cosine_positions,
    transformer_blocks,
)
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import MAESpec

PIXEL_EPS = 1e-6


@final
class MAE(SSLMethod):
    """The encoder, which is the backbone, and the decoder.

    NOTE: upstream puts the tokens back in the image's order before the decoder and predicts all patches, then masks
    the loss. Here they stay shuffled, visible ones first, each with its own position, and the masked ones alone are
    predicted: attention does not depend on the order, so the loss is the same.
    """

    backbone: ViT
    num_views = 1

    def __init__(self, spec: MAESpec, backbone: ViT, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.seed = seed
        self.replicas = replicas or SingleProcess()
        self.backbone = backbone
        self.decoder = build_with_mae_init(lambda: Decoder(spec, backbone), torch_generator(seed, "decoder"))

    def loss(self, batch: Batch) -> LossOutput:
        """Mean squared error over the pixels of the masked patches, in units of ImageNet's normalisation.

        With ``norm_pixels`` each patch is in units of its own standard deviation: its mean colour alone scores about 1.

        Raises:
            SpecError: Also where the image does not split into patches, or none would be visible, or none masked.
        """
        (images,) = views_of(batch, self.num_views)
        patch_px = self.backbone.spec.patch_px
        grid = grid_of(images, patch_px)
        num_visible = count_visible(grid[0] * grid[1], self.spec.mask_ratio)
        order = self._order(len(images), grid[0] * grid[1], batch.step).to(images.device)  # (b, N)

        encoded = self.backbone.encode(_pick(self.backbone.embed(images), order[:, :num_visible]))  # (b, 1 + n, D)
        prediction = self.decoder(encoded, order, grid)  # (b, N - n, 3 p^2)
        target = _pick(patchify(images, patch_px), order[:, num_visible:])
        if self.spec.norm_pixels:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + PIXEL_EPS).sqrt()
        return LossOutput(F.mse_loss(prediction.float(), target), {})

    def after_step(self, progress: float) -> None:
        """Do nothing: there is neither an EMA copy nor a queue."""

    def _order(self, num_images: int, num_patches: int, step: int) -> Tensor:
        """(b, N) int64: a permutation of each image's patches; the first n are visible. Stream ("mask", step)."""
        num_global = num_images * self.replicas.count
        noise = torch.rand(num_global, num_patches, generator=torch_generator(self.seed, "mask", step))
        return noise[self.replicas.slice(num_global)].argsort(1)


@final
class Decoder(nn.Module):
    """What the encoder says of the visible patches, and positions, to the pixels of the masked ones."""

    def __init__(self, spec: MAESpec, encoder: ViT):
        super().__init__()
        self.embed = nn.Linear(encoder.feature_dim, spec.decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, spec.decoder_dim))
        self.blocks = transformer_blocks(spec.decoder_dim, spec.decoder_heads, spec.decoder_depth)
        self.norm = nn.LayerNorm(spec.decoder_dim, LAYER_NORM_EPS)
        self.predict = nn.Linear(spec.decoder_dim, 3 * encoder.spec.patch_px**2)

    def forward(self, encoded: Tensor, order: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predicted pixels (b, N - n, 3 p^2) of the masked patches, as ``patchify`` lays them out, in ``order``.

        Args:
            encoded: (b, 1 + n, D), the class token first.
            order: (b, N): which patch each token is, the visible ones first.
            grid: Rows and columns of patches.
        """
        seen: Tensor = self.embed(encoded)  # (b, 1 + n, E)
        num_visible = seen.shape[1] - 1
        positions = sine_cosine_positions(seen.shape[2], *grid, seen.device)[order]  # (b, N, E)
        visible = seen[:, 1:] + positions[:, :num_visible]
        masked = self.mask_token + positions[:, num_visible:]
        decoded = self.blocks(torch.cat([seen[:, :1], visible, masked], 1))[:, 1 + num_visible :]
        pixels: Tensor = self.predict(self.norm(decoded))
        return pixels


def count_visible(num_patches: int, mask_ratio: float) -> int:
    """How many patches the encoder sees: ``num_patches * (1 - mask_ratio)``, rounded down as upstream.

    Raises:
        SpecError: None would be visible, or none masked.
    """
    count = int(num_patches * (1 - mask_ratio) + 1e-9)  # 10 * (1 - 0.9) is a little less than 1
    if not 0 < count < num_patches:
        raise SpecError(
            f"a mask_ratio of {mask_ratio} leaves {count} of {num_patches} patches visible, but both visible and "
            "masked ones are needed; set method.mask_ratio nearer to one half, or take larger images or smaller patches"
        )
    return count


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """Images (B, 3, H, W) to patches (B, N, 3 p^2) in rows; a patch is its pixels in rows, each with its channels."""
    patches = images.unfold(2, patch_px, patch_px).unfold(3, patch_px, patch_px)  # (B, 3, rows, columns, p, p)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def _pick(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens (B, N, C) at ``order`` (B, n): (B, n, C)."""
    return tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))
