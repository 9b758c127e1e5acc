"""Random views of a batch of images: tensor code with per-sample parameters, on the images' device.

``apply`` turns images and ``view_parameters`` into views. The operators are torchvision's, and are tested against it:
RandomResizedCrop (antialiased), ColorJitter, RandomGrayscale, GaussianBlur, RandomHorizontalFlip, Normalize. On a GPU
``fused_views`` does the same in Triton kernels.

NOTE: a difference from torchvision on uint8 or PIL images: nothing is rounded to 8 bits between the operators.

Shapes: B images, 3 channels, H x W px in, S = ``size_px`` out; N rows of parameters.
"""

import functools
import logging
from subprocess import SubprocessError
from types import ModuleType

import torch
from torch import Tensor

from ssl_backdoor.data.view_parameters import (
    GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ViewParameters,
    blur_reach_px,
    draw_uniform,
    parameters_of,
)
from ssl_backdoor.device import to_device
from ssl_backdoor.errors import DataError, to_printable_line
from ssl_backdoor.events import log_event
from ssl_backdoor.specs import ViewsSpec


def make_views(images: Tensor, spec: ViewsSpec, generator: torch.Generator) -> Tensor:
    """One random view of each image: ``draw_uniform``, ``parameters_of`` and ``apply`` in one.

    Args:
        images: (B, 3, H, W) uint8.
        spec: the distribution of views.
        generator: the only source of randomness; advances by B * NUM_UNIFORMS numbers.

    Returns:
        (B, 3, S, S) float32, normalised by ImageNet's mean and standard deviation.
    """
    n, _, height, width = images.shape
    return apply(images, parameters_of(draw_uniform(n, generator), height, width, spec), spec)


@torch.no_grad()
def evaluation_view(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to float32, normalised by ImageNet's mean and standard deviation; nothing random."""
    return normalise(images.float().div_(255))


def normalise(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to zero mean and unit variance over ImageNet."""
    scale, bias = _normalisation(pixels.device)
    return torch.addcmul(bias, pixels, scale)


@torch.no_grad()
def apply(images: Tensor, parameters: ViewParameters, spec: ViewsSpec) -> Tensor:
    """The views that ``parameters`` describe; row i depends on image i and row i alone.

    Args:
        images: (B, 3, H, W) uint8.
        parameters: B rows drawn for images of H x W px with the same spec.
        spec: which operators act at all; one whose probability or strength is 0 costs nothing.

    Returns:
        (B, 3, S, S) float32, normalised by ImageNet's mean and standard deviation.

    Raises:
        DataError: ``images`` is not (B, 3, H, W) uint8 with one row of parameters for each.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(parameters.top):
        raise DataError(
            f"views need ({len(parameters.top)}, 3, height, width) uint8 images, one for each row of parameters, "
            f"but found {tuple(images.shape)} {images.dtype}"
        )
    if images.is_cuda and (fused := _load_fused_views(images.device)) is not None:
        views: Tensor = fused.apply(images, to_device(fused.table_of(parameters, spec), images.device), spec)
        return views
    with torch.autocast(images.device.type, enabled=False):
        views = _crop_and_resize(images, parameters, spec)
        if spec.jitter_p > 0 and (spec.brightness or spec.contrast or spec.saturation or spec.hue):
            _jitter_(views, parameters, spec)
        if spec.blur_p > 0:
            _blur_(views, parameters, blur_reach_px(spec))
        return _grey_and_normalise(views, parameters.grey if spec.grey_p > 0 else None)


@functools.lru_cache(maxsize=8)
def _load_fused_views(device: torch.device) -> ModuleType | None:
    """``fused_views``, which does all of this at once, or None, with one warning, where its kernels do not compile."""
    try:
        from ssl_backdoor.data import fused_views  # needs Triton

        fused_views.smoke_test(device)
    except (ImportError, OSError, RuntimeError, SubprocessError) as error:
        log_event(
            "unfused",
            f"views fall back to eager operators (about 10 times slower on a GPU): Triton cannot compile here "
            f"({type(error).__name__}: {to_printable_line(str(error))}); install a C compiler and Python's headers",
            logging.WARNING,
        )
        return None
    return fused_views


def _crop_and_resize(images: Tensor, parameters: ViewParameters, spec: ViewsSpec) -> Tensor:
    """(B, 3, S, S) in [0, 1]: resized crops, flipped, as two products with per-sample matrices, Wy @ image @ Wx^T."""
    n, _, height, width = images.shape
    size, device = spec.size_px, images.device
    top, left, box_height, box_width, flip = (f.to(device, non_blocking=True) for f in parameters[:5])
    rows = resampling_matrix(top, box_height, None, height, size, spec.interpolation)
    columns = resampling_matrix(left, box_width, flip if spec.flip_p > 0 else None, width, size, spec.interpolation)
    pixels, rows = images.float(), rows.div_(255)
    squashed = torch.stack([torch.bmm(rows, channel) for channel in pixels.unbind(1)], 1)
    views = torch.bmm(squashed.view(n, 3 * size, width), columns.mT).view(n, 3, size, size)
    return views.clamp_(0, 1) if spec.interpolation == "bicubic" else views


def resampling_matrix(
    start: Tensor, length: Tensor, flip: Tensor | None, in_px: int, out_px: int, interpolation: str
) -> Tensor:
    """(N, out_px, in_px) weights that resize [start, start + length) of an axis as torch's antialiased interpolate.

    Triangle filter (bilinear) or Keys' cubic with a = -0.5 (bicubic), widened by the scale when shrinking, cut at the
    crop's edges and normalised (aten/src/ATen/native/cpu/UpSampleKernel.cpp, PyTorch 2.11). ``flip`` reverses rows.
    """
    scale = (length / out_px)[:, None]
    stretch = scale.clamp(min=1)
    pixel = torch.arange(in_px, device=start.device) - start[:, None]
    inside = (pixel >= 0) & (pixel < length[:, None])
    position = torch.where(inside, (pixel + 0.5) / stretch, torch.inf)
    target = torch.arange(out_px, device=start.device) + 0.5
    if flip is not None:
        target = torch.where(flip[:, None], out_px - target, target)
    centre = target * (scale / stretch)
    weights = (position[:, None, :] - centre[:, :, None]).abs_()
    weights = 1 - weights.clamp_(max=1) if interpolation == "bilinear" else _cubic(weights.clamp_(max=2))
    return weights.div_(weights.sum(2, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5 at distances ``x`` in [0, 2]."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, far)


def _jitter_(views: Tensor, parameters: ViewParameters, spec: ViewsSpec) -> None:
    """ColorJitter in place, each sample in its own order, on the samples that ``parameters.jitter`` marks.

    Brightness, contrast and saturation are blends: one affine map of the channels, then a clamp. So one product serves
    a batch in which every sample is at another of them. Samples are sorted by how many blends precede their change of
    hue; blend i then runs before it on a tail of the batch, and after it on the head that is left.
    """
    blends = [op for op, strength in enumerate((spec.brightness, spec.contrast, spec.saturation)) if strength > 0]
    before = (parameters.rank[:, blends] < parameters.rank[:, 3:]).sum(1)
    before.masked_fill_(~parameters.jitter, len(blends) + 1)
    ends = before.bincount(minlength=len(blends) + 2).cumsum(0).tolist()
    selected = before.argsort(stable=True)[: ends[-2]]
    rows = selected.to(views.device, non_blocking=True)
    pixels = views.index_select(0, rows).flatten(2)
    matrices, mean_weights = _blends(parameters.rows(selected), blends, views.device)
    for i in range(len(blends)):
        _blend_(pixels[ends[i] :], matrices[i, ends[i] :], mean_weights[i, ends[i] :])
    if spec.hue > 0:
        _shift_hue_(pixels, parameters.hue[selected].to(views.device, non_blocking=True))
    for i in range(len(blends)):
        _blend_(pixels[: ends[i]], matrices[i, : ends[i]], mean_weights[i, : ends[i]])
    views.index_copy_(0, rows, pixels.view(-1, *views.shape[1:]))


def _blends(parameters: ViewParameters, blends: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The ith blend of each sample: (K, N, 3, 3) channel matrices and (K, N) weights of the image's mean grey.

    With factor f: brightness f x; contrast f x + (1 - f) mean(grey(x)); saturation f x + (1 - f) grey(x).
    """
    rank = parameters.rank
    op = torch.tensor(blends, dtype=torch.int64, device=rank.device)[rank[:, blends].argsort(1)].T
    factor = torch.stack((parameters.brightness, parameters.contrast, parameters.saturation)).gather(0, op)
    saturate = ((1 - factor) * (op == 2))[:, :, None, None] * _constant(GREY, factor.device)
    matrices = factor[:, :, None, None] * torch.eye(3, device=factor.device) + saturate
    mean_weights = (1 - factor) * (op == 1)
    return matrices.to(device, non_blocking=True), mean_weights.to(device, non_blocking=True)


def _blend_(pixels: Tensor, matrices: Tensor, mean_weights: Tensor) -> None:
    """Map (N, 3, P) pixels by (N, 3, 3) matrices, add (N,) parts of each image's mean grey, and clamp; in place."""
    if len(pixels):
        mean_grey = (pixels.mean(2) * _constant(GREY, pixels.device)).sum(1)  # MKL's product of both varies with N
        offset = (mean_grey * mean_weights)[:, None, None]
        torch.clamp(torch.baddbmm(offset, matrices, pixels), 0, 1, out=pixels)


def _shift_hue_(pixels: Tensor, turns: Tensor) -> None:
    """Turn the hue of (N, 3, P) pixels by (N,) turns of the colour circle, in place; torchvision's HSV arithmetic.

    With low, high and chroma c of a pixel, its hue in sixths of a turn is +-(g + b - r + high - 2 low) / c, with the
    sign of g - b, in all six sextants; and the channel whose own hue is h0 (in turns) is
    low + c clamp(2 - 6 |hue - h0|, 0, 1), the distance taken around the circle.
    """
    low, high = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
    red, green, blue = pixels.chunk(3, 1)
    six_chroma = (high - low).mul_(6).clamp_(min=1e-12)
    hue = (green + blue).sub_(red).add_(high).sub_(low, alpha=2).div_(six_chroma).copysign_(green - blue)
    away = hue + (turns[:, None] - _constant((0.0, 1 / 3, -1 / 3), turns.device))[:, :, None]
    away.sub_(away.round()).abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(low.add_(six_chroma, alpha=1 / 3), six_chroma, away, value=-1, out=pixels)


def _blur_(views: Tensor, parameters: ViewParameters, reach_px: int) -> None:
    """Gaussian blur in place of the samples that ``parameters.blur`` marks, as G @ channel @ G^T."""
    selected = parameters.blur.nonzero()[:, 0]
    rows, size = selected.to(views.device, non_blocking=True), views.shape[-1]
    sharp = views.index_select(0, rows)
    matrix = blur_matrix(parameters.sigma[selected].to(views.device, non_blocking=True), reach_px, size)
    down = torch.stack([torch.bmm(matrix, channel) for channel in sharp.unbind(1)], 1)
    views.index_copy_(0, rows, torch.bmm(down.view(-1, 3 * size, size), matrix.mT).view_as(sharp))


def blur_matrix(sigma: Tensor, reach_px: int, size_px: int) -> Tensor:
    """(N, size_px, size_px) weights of torchvision's gaussian_blur along one axis, for (N,) sigmas; edges reflect."""
    offsets = torch.arange(-reach_px, reach_px + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square(), dim=1)
    return (kernel @ _reflections(reach_px, size_px, sigma.device)).view(-1, size_px, size_px)


@functools.lru_cache(maxsize=16)
def _reflections(reach_px: int, size_px: int, device: torch.device) -> Tensor:
    """(kernel, size * size) of 0 and 1: which input pixel each tap of the kernel reads, for each output pixel."""
    taps = torch.arange(-reach_px, reach_px + 1)[:, None] + torch.arange(size_px)
    inside = (size_px - 1 - (size_px - 1 - taps.abs()).abs())[:, :, None] == torch.arange(size_px)
    return inside.float().flatten(1).to(device)


def _grey_and_normalise(views: Tensor, grey: Tensor | None) -> Tensor:
    """Both are affine in the channels: one 3 x 3 matrix a sample."""
    scale, bias = _normalisation(views.device)
    if grey is None:
        return torch.addcmul(bias, views, scale)
    to_grey = grey.to(views.device, non_blocking=True)[:, None, None]
    mix = torch.where(to_grey, _constant(GREY, views.device), torch.eye(3, device=views.device))
    return torch.baddbmm(bias.view(3, 1), mix * scale.view(3, 1), views.flatten(2)).view_as(views)


def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and bias (3, 1, 1) that take [0, 1] to zero mean and unit variance over ImageNet."""
    scale = _constant(tuple(1 / std for std in IMAGENET_STD), device)
    bias = _constant(tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)), device)
    return scale.view(3, 1, 1), bias.view(3, 1, 1)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small tensor that reaches ``device`` once: each copy made anew would make the host wait for a GPU."""
    return torch.tensor(values).to(device)
