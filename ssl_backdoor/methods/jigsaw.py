"""Jigsaw (Noroozi & Favaro 2016), https://arxiv.org/abs/1603.09246, as in Saha et al.'s code.

Compared with https://github.com/UMBCvision/SSL-Backdoor/blob/6fef0b3/jigsaw/dataset.py and resnet.py. A view is cut in
3 x 3 cells, a tile is cut from each at a random place, and the tiles are shuffled by one of a fixed set of
permutations; the network says by which.

Shapes: b images of this replica, S side of a view, t side of a tile.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, views_of
from ssl_backdoor.methods.parts import mlp
from ssl_backdoor.methods.permutations import NUM_TILES, far_permutations
from ssl_backdoor.methods.pretext import classify
from ssl_backdoor.seeds import stream, torch_generator
from ssl_backdoor.specs import JigsawSpec

GRID = 3


@final
class Jigsaw(SSLMethod):
    """Backbone and linear layer on each tile, then one hidden layer over all nine; a step passes ``9 b`` tiles.

    NOTE: the head is the paper's (a layer shared by the tiles, then two over all nine) without its dropout, which would
    draw from torch's global generator. Upstream has one linear layer on the nine tiles' features.

    NOTE: tiles keep their brightness and contrast, as upstream. The paper (section 4.2) takes each tile's own mean and
    standard deviation out; features of whole images, which keep theirs, were then worse than a random network's.

    NOTE: upstream never cuts a tile at a cell's far edge (randint(0, 21) where 85 - 64 allows 21); here all places are
    equally likely. Its random colour projection is not an operator of ``ViewsSpec`` and is left out.
    """

    num_views = 1
    permutations: Tensor

    def __init__(self, spec: JigsawSpec, backbone: ResNet, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.seed = seed
        self.replicas = replicas or SingleProcess()
        self.backbone = backbone
        self.tile_head = build_with_torchvision_init(
            lambda: nn.Linear(backbone.feature_dim, spec.tile_dim), torch_generator(seed, "tile_head")
        )
        self.head = build_with_torchvision_init(
            lambda: mlp(NUM_TILES * spec.tile_dim, spec.hidden_dim, spec.num_permutations),
            torch_generator(seed, "head"),
        )
        permutations = far_permutations(spec.num_permutations, stream(seed, "permutations"))
        self.register_buffer("permutations", torch.from_numpy(permutations))

    def loss(self, batch: Batch) -> LossOutput:
        """Cross-entropy over the permutations, one of which is drawn for each image in each step.

        Raises:
            SpecError: A cell of the view is smaller than a tile, or as the base class.
        """
        (view,) = views_of(batch, self.num_views)
        cell_px, tile_px = view.shape[-1] // GRID, self.spec.tile_px
        if tile_px > cell_px:
            raise SpecError(
                f"tiles of {tile_px} px need images of at least {GRID * tile_px} px, found {view.shape[-1]} px with "
                f"cells of {cell_px} px; raise train.fit.views.size_px or lower train.method.tile_px"
            )
        num_images = len(view) * self.replicas.count
        mine = self.replicas.slice(num_images)
        generator = torch_generator(self.seed, "jigsaw", batch.step)
        labels = torch.randint(self.spec.num_permutations, (num_images,), generator=generator)[mine].to(view.device)
        places = torch.randint(cell_px - tile_px + 1, (num_images, NUM_TILES, 2), generator=generator)[mine]
        tiles = cut_tiles(view, self.permutations[labels], places.to(view.device), tile_px)
        features = F.relu(self.tile_head(self.backbone(tiles)))
        return classify(self.head(features.view(len(view), -1)), labels, self.replicas)

    def after_step(self, progress: float) -> None:
        """Do nothing: there is neither an EMA copy nor a queue."""


def cut_tiles(view: Tensor, cells: Tensor, places: Tensor, tile_px: int) -> Tensor:
    """Tiles (9 b, 3, t, t), an image's nine side by side.

    Args:
        view: (b, 3, S, S).
        cells: (b, 9): the cell, row by row from 0, that each tile comes from.
        places: (b, 9, 2): the tile's upper and left edge within its cell, px.
        tile_px: t, at most S // 3.
    """
    edges = torch.stack([cells // GRID, cells % GRID], 2) * (view.shape[-1] // GRID) + places
    pixels = edges[:, :, :, None] + torch.arange(tile_px, device=view.device)  # (b, 9, 2, t)
    rows, columns = pixels[:, :, 0, :, None], pixels[:, :, 1, None, :]
    image = torch.arange(len(view), device=view.device)[:, None, None, None]
    tiles = view[image, :, rows, columns]  # (b, 9, t, t, 3): channels last
    return tiles.permute(0, 1, 4, 2, 3).flatten(0, 1)
