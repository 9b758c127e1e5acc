from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import Batch, Replicas, SingleProcess
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.mae import MAE, count_visible, patchify
from ssl_backdoor.methods.vit import sine_cosine_positions
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import MAESpec
from tests.support.tiny_training import VIT

Floats = NDArray[np.float64]
SPEC = MAESpec(decoder_dim=8, decoder_depth=2, decoder_heads=2)
P = VIT.patch_px


def method(replicas: Replicas | None = None, **changes: Any) -> MAE:
    return MAE(SPEC.model_copy(update=changes), build_backbone(VIT, 1, 0), 7, replicas).train()


def images(count: int = 8, height: int = 12, width: int = 16) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch_generator(0, "images"))


def slow_patches(image: Floats) -> Floats:
    """(3, H, W) to (N, P * P * 3), pixel by pixel."""
    rows, columns = image.shape[1] // P, image.shape[2] // P
    patches = np.zeros((rows * columns, P * P * 3))
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            for channel in range(3):
                patch = y // P * columns + x // P
                patches[patch, ((y % P) * P + x % P) * 3 + channel] = image[channel, y, x]
    return patches


def slow_order(count: int, num_patches: int, step: int) -> NDArray[np.int64]:
    """Patches of each image sorted by noise: upstream's random_masking."""
    noise = torch.rand(count, num_patches, generator=torch_generator(7, "mask", step)).numpy()
    return np.array([sorted(range(num_patches), key=lambda patch: row[patch]) for row in noise])


def slow_loss(ours: MAE, batch: Batch, num_visible: int) -> float:
    """As upstream: tokens back in the image's order before the decoder, all patches predicted, the loss masked."""
    (views,) = batch.views
    rows, columns = views.shape[2] // P, views.shape[3] // P
    order = slow_order(len(views), rows * columns, batch.step)
    total, count = 0.0, 0
    for image, shuffled in zip(views, order, strict=True):
        visible = shuffled[:num_visible]
        seen = ours.decoder.embed(ours.backbone.encode(ours.backbone.embed(image[None])[:, visible]))[0]
        tokens = [ours.decoder.mask_token[0, 0]] * len(shuffled)
        for place, patch in enumerate(visible):
            tokens[patch] = seen[1 + place]
        positions = sine_cosine_positions(SPEC.decoder_dim, rows, columns, views.device)
        decoded = ours.decoder.blocks(torch.cat([seen[:1], torch.stack(tokens) + positions])[None])
        prediction = ours.decoder.predict(ours.decoder.norm(decoded))[0, 1:].detach().double().numpy()
        for patch, pixels in enumerate(slow_patches(image.double().numpy())):
            if patch in visible:
                continue
            target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6) if ours.spec.norm_pixels else pixels
            total += float(((prediction[patch] - target) ** 2).mean())
            count += 1
    return total / count


# ---------------------------------------------------------------------------------------------------- patches, masks


def test_patches_are_the_images_pixels_and_nothing_is_lost() -> None:
    batch = images(2)
    patches = patchify(batch, P).numpy()
    assert patches.shape == (2, 12, 48)
    for image, found in zip(batch.numpy(), patches, strict=True):
        np.testing.assert_array_equal(found, slow_patches(image).astype(np.float32))
        back = found.reshape(3, 4, P, P, 3).transpose(4, 0, 2, 1, 3).reshape(3, 12, 16)
        np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize(
    ("num_patches", "ratio", "expected"), [(196, 0.75, 49), (9, 0.75, 2), (10, 0.9, 1), (4, 0.5, 2)]
)
def test_visible_patches_are_rounded_down(num_patches: int, ratio: float, expected: int) -> None:
    assert count_visible(num_patches, ratio) == expected


@pytest.mark.parametrize(("size", "ratio", "visible"), [(4, 0.75, 0), (8, 0.8, 0), (4, 0.01, 0), (8, 1e-12, 4)])
def test_a_ratio_that_leaves_nothing_to_see_or_to_guess(size: int, ratio: float, visible: int) -> None:
    with pytest.raises(SpecError, match=f"leaves {visible} of {(size // P) ** 2} patches visible"):
        method(mask_ratio=ratio).loss(Batch((images(2, size, size),)))


class One(SingleProcess):
    """One of several replicas that need not exchange anything."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count


def test_masks_are_drawn_for_the_global_batch_anew_at_each_step() -> None:
    whole = method()._order(6, 12, 3)
    np.testing.assert_array_equal(whole.numpy(), slow_order(6, 12, 3))
    parts = [method(One(index, 3))._order(2, 12, 3) for index in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(method()._order(6, 12, 4), whole)
    assert torch.equal(whole.sort(1).values, torch.arange(12).expand(6, 12))


def test_every_patch_is_masked_equally_often() -> None:
    masked = method()._order(4000, 16, 0)[:, 4:]
    counts = torch.bincount(masked.flatten(), minlength=16)
    sd = (4000 * 0.75 * 0.25) ** 0.5
    assert (counts - 3000).abs().max().item() < 5 * sd


# ---------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("norm_pixels", [True, False])
@pytest.mark.parametrize(("ratio", "num_visible"), [(0.75, 3), (0.5, 6)])
def test_loss_is_upstreams_on_shuffled_and_unshuffled_tokens(norm_pixels: bool, ratio: float, num_visible: int) -> None:
    ours = method(norm_pixels=norm_pixels, mask_ratio=ratio)
    batch = Batch((images(),), step=5)
    assert ours.loss(batch).loss.item() == pytest.approx(slow_loss(ours, batch, num_visible), rel=1e-5)


def test_a_decoder_that_says_the_mean_scores_the_variance() -> None:
    ours = method()
    torch.nn.init.zeros_(ours.decoder.predict.weight)
    # Biased over unbiased variance of the 48 numbers of a patch.
    assert ours.loss(Batch((images(),))).loss.item() == pytest.approx(47 / 48, rel=1e-5)
    plain = method(norm_pixels=False)
    torch.nn.init.zeros_(plain.decoder.predict.weight)
    assert plain.loss(Batch((torch.full((4, 3, 8, 8), 3.0),))).loss.item() == pytest.approx(9.0)


def test_the_encoder_sees_visible_patches_only() -> None:
    ours = method()
    batch = images(4).requires_grad_()
    seen: list[Tensor] = []
    ours.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    ours.loss(Batch((batch,)))
    seen[0].square().sum().backward()
    assert batch.grad is not None
    touched = patchify(batch.grad, P).abs().sum(2) > 0
    expected = torch.zeros(4, 12, dtype=torch.bool)
    expected.scatter_(1, torch.from_numpy(slow_order(4, 12, 0))[:, :3], True)
    assert torch.equal(touched, expected)


def test_two_replicas_give_the_loss_and_gradients_of_one() -> None:
    batch = images()
    alone = method()
    loss = alone.loss(Batch((batch,), step=2)).loss
    loss.backward()
    parts = [method(One(index, 2)) for index in range(2)]
    losses = [part.loss(Batch((half,), step=2)).loss for part, half in zip(parts, batch.chunk(2), strict=True)]
    torch.stack(losses).mean().backward()
    assert sum(losses).item() / 2 == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in alone.named_parameters():
        gradients = [part.get_parameter(name).grad for part in parts]
        torch.testing.assert_close(gradients[0] + gradients[1], parameter.grad, rtol=1e-4, atol=1e-6)


def test_training_learns_to_fill_in_what_is_masked() -> None:
    ours = method(norm_pixels=False)
    colours = torch.randn(64, 3, 1, 1, generator=torch_generator(0, "colours"))
    batch = colours.expand(64, 3, 8, 8).contiguous()  # any visible patch tells the others
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        output = ours.loss(Batch((batch,), step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert np.mean(losses[-5:]) < 0.25 * losses[0]
