"""The vision transformer of Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929, as MAE trains it.

Blocks and patch embedding are timm's; positions, initial weights and parameter names are those of
https://github.com/facebookresearch/mae (models_mae.py, 6a2ba40; util/pos_embed.py, be47fef).

timm is an extra of this project and imported by the functions that need it.

Shapes: B images, S px side, p px patch, N patches in rows from the top left, D embedding.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import allocate_on_cpu
from ssl_backdoor.specs import ViTSpec

ModuleT = TypeVar("ModuleT", bound=nn.Module)

LAYER_NORM_EPS = 1e-6
TOKEN_STD = 0.02


@final
class ViT(nn.Module):
    """A vision transformer up to the mean of its normalised patch tokens.

    Positions are fixed and made for the grid of the images at hand. There is no BatchNorm: ``bn_groups`` is held, not
    used.

    NOTE: MAE's own linear probe reads the class token (main_linprobe.py, 6a2ba40; the mean is its option
    ``--global_pool`` and the default of its fine-tuning). Here features are the mean of the patch tokens: the loss is
    taken on patches, and the features of the residual networks that this one is compared with are means over places.
    """

    def __init__(self, spec: ViTSpec, bn_groups: int = 1):
        super().__init__()
        self.spec = spec
        self.bn_groups = bn_groups
        self.feature_dim = spec.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, spec.embed_dim))
        self.patch_embed = _timm().PatchEmbed(None, spec.patch_px, embed_dim=spec.embed_dim)
        self.blocks = transformer_blocks(spec.embed_dim, spec.num_heads, spec.depth)
        self.norm = nn.LayerNorm(spec.embed_dim, LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, feature_dim).

        Raises:
            SpecError: As ``grid_of``.
        """
        return self.encode(self.embed(images))[:, 1:].mean(1)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to patch tokens (B, N, D) that hold their positions.

        Raises:
            SpecError: As ``grid_of``.
        """
        grid = grid_of(images, self.spec.patch_px)
        tokens: Tensor = self.patch_embed(images)
        return tokens + sine_cosine_positions(self.spec.embed_dim, *grid, images.device)

    def encode(self, tokens: Tensor) -> Tensor:
        """Patch tokens (B, n, D), any of an image's, to normalised tokens (B, 1 + n, D), the class token first."""
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        encoded: Tensor = self.norm(self.blocks(tokens))
        return encoded


def transformer_blocks(dim: int, num_heads: int, depth: int) -> nn.Sequential:
    """``depth`` blocks on tokens (B, n, dim): pre-norm, biased projections, a hidden layer four times as wide."""
    norm = functools.partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
    return nn.Sequential(*(_timm().Block(dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))


def grid_of(images: Tensor, patch_px: int) -> tuple[int, int]:
    """Rows and columns of patches in ``images`` (B, 3, H, W).

    Raises:
        SpecError: A side is not a multiple of ``patch_px``.
    """
    height, width = images.shape[-2:]
    if height % patch_px or width % patch_px:
        raise SpecError(
            f"a vision transformer on patches of {patch_px} px reads images whose sides are multiples of it, found "
            f"{width} x {height} px; set fit.views.size_px and evaluation.crop_px to a multiple, or backbone.patch_px"
        )
    return height // patch_px, width // patch_px


@functools.lru_cache(maxsize=8)
def sine_cosine_positions(dim: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, dim) float32; the first half says the column, the second half the row.

    Place x is ``sin(x w_i)`` for all i, then ``cos(x w_i)``, with ``w_i = 10000 ** (-4 i / dim)``, i < dim / 4. The
    class token's position is zero.
    """
    frequencies = 10_000.0 ** (-4 / dim * np.arange(dim // 4))

    def encoded(places: NDArray[np.int64]) -> NDArray[np.float64]:
        angles = places.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], 1)

    y, x = np.indices((rows, columns))
    positions = np.concatenate([encoded(x), encoded(y)], 1).astype(np.float32)
    with torch.inference_mode(False):  # evaluation may call this first, and training then reuses the result
        return torch.from_numpy(positions).to(device)


def build_with_mae_init(build: Callable[[], ModuleT], generator: torch.Generator) -> ModuleT:
    """``build()`` with weights drawn from ``generator`` alone; the global generator is neither read nor moved.

    Linear layers and the patch embedding Xavier uniform, the former without bias at the start; tokens normal with
    standard deviation 0.02; LayerNorm the identity.
    """
    with torch.device("meta"):
        module = build()
    allocate_on_cpu(module)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1), generator=generator)
            bound = 1 / math.sqrt(part.weight[0].numel())  # PyTorch's own, which MAE leaves
            nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()
    for name, parameter in module.named_parameters():
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=TOKEN_STD, generator=generator)
    return module


def _timm() -> Any:
    """The module of vision transformers and their parts in timm.

    Raises:
        SpecError: It cannot be imported.
    """
    try:
        from timm.models import vision_transformer
    except ImportError as error:
        raise SpecError(
            f"a vision transformer needs timm, but it cannot be imported ({error}); "
            "run: pip install 'ssl-backdoor[vision]'"
        ) from error
    return vision_transformer
