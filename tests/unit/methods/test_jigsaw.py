import copy
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import Batch, SingleProcess
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.jigsaw import Jigsaw, cut_tiles
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import JigsawSpec, TrainSpec, ViewsSpec
from tests.support.tiny_training import BACKBONE, METHODS, fit_spec, random_batch

SPEC = JigsawSpec(num_permutations=10, tile_px=3, tile_dim=8, hidden_dim=16)


def method(bn_groups: int = 1, **changes: object) -> Jigsaw:
    return Jigsaw(SPEC.model_copy(update=changes), build_backbone(BACKBONE, bn_groups, 0), 0).train()


class Second(SingleProcess):
    """The second of two replicas; what it gathers is its own rows."""

    count = 2
    index = 1


def draws(step: int, num_images: int, cell_px: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The permutation and the places of each image, as the method draws them."""
    generator = torch_generator(0, "jigsaw", step)
    labels = torch.randint(10, (num_images,), generator=generator)
    return labels.numpy(), torch.randint(cell_px - 2, (num_images, 9, 2), generator=generator).numpy()


def slow_tiles(image: np.ndarray, permutation: np.ndarray, places: np.ndarray, tile_px: int) -> np.ndarray:
    """The nine tiles of one image in their shuffled order."""
    cell_px = image.shape[-1] // 3
    tiles = []
    for cell, (top, left) in zip(permutation, places, strict=True):
        row, column = divmod(int(cell), 3)
        cut = image[:, row * cell_px :, column * cell_px :][:, top : top + tile_px, left : left + tile_px]
        tiles.append(cut)
    return np.array(tiles)


@pytest.mark.parametrize("side", [12, 14])
def test_loss_and_accuracy_are_the_papers(side: int) -> None:
    ours = method()
    network = copy.deepcopy(ours)
    view = torch.randn(8, 3, side, side, generator=torch_generator(0, "view"))
    output = ours.loss(Batch((view,), step=5))
    labels, places = draws(5, 8)
    losses, hits = [], []
    permutations = ours.permutations.numpy()
    tiles = [slow_tiles(view[i].double().numpy(), permutations[labels[i]], places[i], 3) for i in range(8)]
    features = network.backbone(torch.tensor(np.concatenate(tiles), dtype=torch.float32))
    shared = network.tile_head(features).detach().double().numpy().clip(min=0)
    for i in range(8):
        joined = torch.tensor(shared[9 * i : 9 * i + 9].reshape(-1), dtype=torch.float32)
        logits = network.head(joined).tolist()
        exponentials = [math.exp(value) for value in logits]
        losses.append(-math.log(exponentials[labels[i]] / sum(exponentials)))
        hits.append(logits[labels[i]] == max(logits))
    assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert output.logs["accuracy"].item() == pytest.approx(np.mean(hits))


def test_places_reach_every_pixel_of_a_cell_and_no_further() -> None:
    _, places = draws(0, 64)
    assert set(places.ravel()) == {0, 1}  # cells of 4 px, tiles of 3 px
    cells = torch.arange(9).repeat(4, 1)
    numbered = torch.arange(144.0).view(1, 1, 12, 12).repeat(4, 3, 1, 1)
    corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])[:, None].repeat(1, 9, 1)
    seen = set()
    for image, tile in enumerate(cut_tiles(numbered, cells, corners, 3).view(4, 9, 3, 3, 3).unbind(0)):
        for cell in range(9):
            top, left = cell // 3 * 4 + corners[image, 0, 0], cell % 3 * 4 + corners[image, 0, 1]
            expected = numbered[0, 0, top : top + 3, left : left + 3]
            seen |= set(expected.flatten().tolist())
            assert torch.equal(tile[cell, 0], expected)
    assert len(seen) == 144


def test_a_network_that_cannot_tell_loses_log_of_the_permutations() -> None:
    ours = method()
    with torch.no_grad():
        for parameter in ours.head[-1].parameters():
            parameter.zero_()
    assert ours.loss(random_batch(ours, 0)).loss.item() == pytest.approx(math.log(10), rel=1e-6)


def test_draws_differ_between_steps_and_replicas_share_those_of_the_global_batch() -> None:
    view = torch.randn(8, 3, 12, 12)
    seen: list[np.ndarray] = []
    second = Jigsaw(SPEC, build_backbone(BACKBONE, 1, 0), 0, Second())
    for ours, batch in ((method(), Batch((view,), 0)), (method(), Batch((view,), 1)), (second, Batch((view[4:],), 0))):
        ours.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        ours.loss(batch)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0][36:], seen[2])


def test_two_groups_are_two_halves_of_the_images() -> None:
    """A BatchNorm group parts no image: the tiles of one lie side by side."""
    tiles: list[torch.Tensor] = []
    ours = method(bn_groups=2)
    ours.backbone.register_forward_pre_hook(lambda _, inputs: tiles.append(inputs[0].clone()))
    batch = random_batch(ours, 0)
    ours.loss(batch)
    labels, places = draws(0, 8)
    for half in (0, 1):
        for i in range(4 * half, 4 * half + 4):
            permutation = ours.permutations[labels[i]].numpy()
            expected = slow_tiles(batch.views[0][i].double().numpy(), permutation, places[i], 3)
            actual = tiles[0].chunk(2)[half].view(4, 9, 3, 3, 3)[i - 4 * half]
            np.testing.assert_allclose(actual.numpy(), expected, atol=1e-4)


def test_images_too_small_for_the_tiles_are_refused() -> None:
    ours = method(tile_px=5)
    sentence = "tiles of 5 px need images of at least 15 px, found"
    with pytest.raises(SpecError, match=sentence + " 12 px with cells of 4 px; raise train.fit.views.size_px"):
        ours.loss(random_batch(ours, 0))
    with pytest.raises(ValidationError, match=sentence + " views of 12 px"):
        TrainSpec(method=JigsawSpec(tile_px=5), backbone=BACKBONE, fit=fit_spec())
    assert TrainSpec(method=JigsawSpec(tile_px=5), backbone=BACKBONE, fit=fit_spec(views=ViewsSpec(size_px=15)))
    assert METHODS["jigsaw"] == SPEC
