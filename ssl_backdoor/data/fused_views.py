"""The views of ``views.apply`` on a GPU, in two kernels instead of some hundred; four where images are blurred.

Operator by operator, as ``views`` does it, a batch passes through the device's memory fifty times and each of its
calls costs the host more than the device. Here one program makes a block of one view's pixels. The first kernel crops,
resizes and does what precedes the change of contrast, which needs the mean of the image as it is then; the second does
the rest. What each image undergoes is a row of one table, so that a batch costs one copy to the device.

The numbers are those of ``views`` up to rounding, and do not depend on the order in which programs run.

Shapes: B images, 3 channels, H x W px in, S x S px out.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_backdoor.data.view_parameters import GREY, IMAGENET_MEAN, IMAGENET_STD, ViewParameters, blur_reach_px
from ssl_backdoor.specs import ViewsSpec

_SMALL = ViewsSpec(size_px=8)
BLOCK = 1024
"""Pixels of one program."""
NUM_COLUMNS = 16
"""Of the table: top, left, height, width, flip; the four operators in their order (``NONE`` where one does not act) and
their four amounts; how many of them precede the change of contrast; grey; sigma (0: no blur)."""
NONE, BRIGHTNESS, CONTRAST, SATURATION, HUE = (tl.constexpr(code) for code in range(5))
_FIRST_OP, _FIRST_AMOUNT, _BEFORE_CONTRAST, _GREY, _SIGMA = (tl.constexpr(column) for column in (5, 9, 13, 14, 15))
_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in GREY)
_MEAN_R, _MEAN_G, _MEAN_B = (tl.constexpr(mean) for mean in IMAGENET_MEAN)
_STD_R, _STD_G, _STD_B = (tl.constexpr(std) for std in IMAGENET_STD)


def table_of(parameters: ViewParameters, spec: ViewsSpec) -> Tensor:
    """(N, NUM_COLUMNS) float32: ``parameters`` as the kernels read them."""
    acts = torch.tensor([strength > 0 for strength in (spec.brightness, spec.contrast, spec.saturation, spec.hue)])
    acts = acts & parameters.jitter[:, None]  # (N, 4)
    order = parameters.rank.argsort(1)  # the operator at each position
    amounts = torch.stack((parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue), 1)
    before_contrast = torch.where(acts[:, 1], parameters.rank[:, 1], 4)
    flip = parameters.flip if spec.flip_p > 0 else torch.zeros_like(parameters.flip)
    grey = parameters.grey if spec.grey_p > 0 else torch.zeros_like(parameters.grey)
    columns = [
        *(parameters.top, parameters.left, parameters.height, parameters.width, flip),
        *((order + 1) * acts.gather(1, order)).unbind(1),
        *amounts.gather(1, order).unbind(1),
        *(before_contrast, grey, parameters.sigma.clamp(min=1e-3) * parameters.blur),
    ]
    return torch.stack([column.float() for column in columns], 1)


@torch.no_grad()
def apply(images: Tensor, table: Tensor, spec: ViewsSpec) -> Tensor:
    """The views that ``table`` describes.

    Args:
        images: (B, 3, H, W) uint8.
        table: (B, NUM_COLUMNS) of ``table_of``, on the images' device.
        spec: The one that the table was made for.

    Returns:
        (B, 3, S, S) float32, channels last, normalised by ImageNet's mean and standard deviation.
    """
    images, size = images.contiguous(), spec.size_px
    num_images, _, height, width = images.shape
    num_blocks = triton.cdiv(size * size, BLOCK)
    pixels = images.new_empty((num_images, 3, size, size), dtype=torch.float32)
    views = torch.empty_like(pixels, memory_format=torch.channels_last)
    grey_sums = pixels.new_empty(num_images, num_blocks)
    blurs = spec.blur_p > 0
    grid = (num_images, num_blocks)
    fixed: dict[str, Any] = {"SIZE": size, "COLUMNS": NUM_COLUMNS, "BLOCK": BLOCK}
    blocks = {"NUM_BLOCKS": num_blocks, "BLOCKS": triton.next_power_of_2(num_blocks)}
    with torch.cuda.device_of(images):  # Triton launches on the current device, whatever its arguments lie on
        _crop[grid](images, table, pixels, grey_sums, height, width, CUBIC=spec.interpolation == "bicubic", **fixed)
        _colour[grid](pixels, table, grey_sums, pixels if blurs else views, IS_LAST=not blurs, **blocks, **fixed)
        if blurs:
            across, reach_px = torch.empty_like(pixels), blur_reach_px(spec)
            _blur[grid](pixels, table, across, reach_px, STEP=1, IS_LAST=False, **fixed)
            _blur[grid](across, table, views, reach_px, STEP=size, IS_LAST=True, **fixed)
    return views


def smoke_test(device: torch.device) -> None:
    """Make one view, so that what a machine lacks shows: Triton needs a C compiler and Python's headers.

    Raises:
        RuntimeError, OSError, SubprocessError: what Triton says.
    """
    apply(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device), torch.ones(1, NUM_COLUMNS, device=device), _SMALL)


@triton.jit
def _crop(
    images,
    table,
    pixels,
    grey_sums,
    height,
    width,
    CUBIC: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Crop, resize, and the operators ahead of contrast; the sum of the block's grey."""
    sample, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = table + sample * COLUMNS
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE
    image = images + sample * 3 * height * width
    red, green, blue = _resampled(image, row, place, inside, height, width, CUBIC, SIZE, BLOCK)
    before_contrast = tl.load(row + _BEFORE_CONTRAST)
    for i in tl.static_range(4):
        if i < before_contrast:
            op, amount = tl.load(row + _FIRST_OP + i), tl.load(row + _FIRST_AMOUNT + i)
            red, green, blue = _operate(op, amount, 0.0, red, green, blue)
    tl.store(grey_sums + sample * tl.num_programs(1) + block, tl.sum(tl.where(inside, _grey(red, green, blue), 0.0)))
    _store(pixels + sample * 3 * SIZE * SIZE, place, inside, SIZE * SIZE, 1, red, green, blue)


@triton.jit
def _colour(
    pixels,
    table,
    grey_sums,
    out,
    IS_LAST: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Contrast and the operators after it."""
    sample, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, of_sample = table + sample * COLUMNS, sample * 3 * SIZE * SIZE
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE
    blocks = tl.arange(0, BLOCKS)
    sums = tl.load(grey_sums + sample * NUM_BLOCKS + blocks, mask=blocks < NUM_BLOCKS, other=0.0)
    mean_grey = tl.sum(sums) / (SIZE * SIZE)
    red, green, blue = _load(pixels + of_sample, place, inside, SIZE * SIZE)
    before_contrast = tl.load(row + _BEFORE_CONTRAST)
    for i in tl.static_range(4):
        if i >= before_contrast:
            op, amount = tl.load(row + _FIRST_OP + i), tl.load(row + _FIRST_AMOUNT + i)
            red, green, blue = _operate(op, amount, mean_grey, red, green, blue)
    if IS_LAST:
        _store_normalised(out + of_sample, row, place, inside, red, green, blue)
    else:
        _store(out + of_sample, place, inside, SIZE * SIZE, 1, red, green, blue)


@triton.jit
def _blur(
    pixels,
    table,
    out,
    reach_px,
    STEP: tl.constexpr,
    IS_LAST: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gaussian blur along one axis, whose neighbours lie ``STEP`` apart; edges reflect."""
    sample, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, of_sample = table + sample * COLUMNS, sample * 3 * SIZE * SIZE
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE
    sigma = tl.load(row + _SIGMA)
    if sigma > 0:
        along = (place // STEP) % SIZE
        red = tl.zeros([BLOCK], tl.float32)
        green, blue, total = red, red, 0.0
        for tap in range(-reach_px, reach_px + 1):
            weight = tl.exp(-0.5 * (tap / sigma) * (tap / sigma))
            reflected = SIZE - 1 - tl.abs(SIZE - 1 - tl.abs(along + tap))
            r, g, b = _load(pixels + of_sample, place + (reflected - along) * STEP, inside, SIZE * SIZE)
            red, green, blue, total = red + weight * r, green + weight * g, blue + weight * b, total + weight
        red, green, blue = red / total, green / total, blue / total
    else:
        red, green, blue = _load(pixels + of_sample, place, inside, SIZE * SIZE)
    if IS_LAST:
        _store_normalised(out + of_sample, row, place, inside, red, green, blue)
    else:
        _store(out + of_sample, place, inside, SIZE * SIZE, 1, red, green, blue)


# --------------------------------------------------------------------------------------------------- on one block


@triton.jit
def _resampled(image, row, place, inside, height, width, CUBIC: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The pixels at ``place`` of the view, cropped, resized and flipped as ``views.resampling_matrix`` does it."""
    top, left = tl.load(row).to(tl.int32), tl.load(row + 1).to(tl.int32)
    box_height, box_width = tl.load(row + 2), tl.load(row + 3)
    target_y, target_x = (place // SIZE) + 0.5, (place % SIZE) + 0.5
    target_x = tl.where(tl.load(row + 4) > 0, SIZE - target_x, target_x)

    scale_y, scale_x = box_height / SIZE, box_width / SIZE
    stretch_y, stretch_x = tl.maximum(scale_y, 1.0), tl.maximum(scale_x, 1.0)
    radius = 2.0 if CUBIC else 1.0
    first_y = tl.floor(target_y * scale_y - radius * stretch_y - 0.5).to(tl.int32) + 1
    first_x = tl.floor(target_x * scale_x - radius * stretch_x - 0.5).to(tl.int32) + 1
    centre_y, centre_x = target_y * (scale_y / stretch_y), target_x * (scale_x / stretch_x)
    num_taps_y = tl.ceil(2 * radius * stretch_y).to(tl.int32)
    num_taps_x = tl.ceil(2 * radius * stretch_x).to(tl.int32)

    red = tl.zeros([BLOCK], tl.float32)
    green, blue, total = red, red, red
    channel = height * width
    for tap_y in range(num_taps_y):
        y = first_y + tap_y
        weight_y = _weight((y + 0.5) / stretch_y - centre_y, CUBIC)
        has_y = inside & (y >= 0) & (y < box_height)
        for tap_x in range(num_taps_x):
            x = first_x + tap_x
            has = has_y & (x >= 0) & (x < box_width)
            weight = tl.where(has, weight_y * _weight((x + 0.5) / stretch_x - centre_x, CUBIC), 0.0)
            source = image + (top + y) * width + left + x
            red += weight * tl.load(source, mask=has, other=0).to(tl.float32)
            green += weight * tl.load(source + channel, mask=has, other=0).to(tl.float32)
            blue += weight * tl.load(source + 2 * channel, mask=has, other=0).to(tl.float32)
            total += weight
    scale = 1 / tl.where(inside, total * 255, 1.0)
    red, green, blue = red * scale, green * scale, blue * scale
    if CUBIC:
        red, green, blue = _clamp(red), _clamp(green), _clamp(blue)
    return red, green, blue


@triton.jit
def _weight(distance, CUBIC: tl.constexpr):
    """The triangle filter, or Keys' cubic with a = -0.5."""
    x = tl.abs(distance)
    if CUBIC:
        x = tl.minimum(x, 2.0)
        near = (1.5 * x - 2.5) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        weight = tl.where(x < 1, near, far)
    else:
        weight = 1 - tl.minimum(x, 1.0)
    return weight


@triton.jit
def _operate(op, amount, mean_grey, red, green, blue):
    """One operator of ColorJitter; each is what ``views`` makes of it."""
    if op == BRIGHTNESS:
        red, green, blue = _clamp(amount * red), _clamp(amount * green), _clamp(amount * blue)
    elif op == CONTRAST:
        rest = (1 - amount) * mean_grey
        red, green, blue = _clamp(amount * red + rest), _clamp(amount * green + rest), _clamp(amount * blue + rest)
    elif op == SATURATION:
        rest = (1 - amount) * _grey(red, green, blue)
        red, green, blue = _clamp(amount * red + rest), _clamp(amount * green + rest), _clamp(amount * blue + rest)
    elif op == HUE:
        low, high = tl.minimum(tl.minimum(red, green), blue), tl.maximum(tl.maximum(red, green), blue)
        six_chroma = tl.maximum(6 * (high - low), 1e-12)
        hue = tl.abs(green + blue - red + high - 2 * low) / six_chroma
        hue = tl.where(green < blue, -hue, hue) + amount
        red = _of_hue(hue, low, six_chroma)
        green = _of_hue(hue - 1 / 3, low, six_chroma)
        blue = _of_hue(hue + 1 / 3, low, six_chroma)
    return red, green, blue


@triton.jit
def _of_hue(away, low, six_chroma):
    away = tl.abs(away - tl.floor(away + 0.5))
    return low + six_chroma * (1 / 3 - tl.minimum(tl.maximum(away, 1 / 6), 1 / 3))


@triton.jit
def _grey(red, green, blue):
    return _RED * red + _GREEN * green + _BLUE * blue


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _load(image, place, inside, channel):
    red = tl.load(image + place, mask=inside, other=0.0)
    green = tl.load(image + channel + place, mask=inside, other=0.0)
    return red, green, tl.load(image + 2 * channel + place, mask=inside, other=0.0)


@triton.jit
def _store(image, place, inside, channel, pixel, red, green, blue):
    """Channels lie ``channel`` apart and pixels ``pixel``."""
    tl.store(image + place * pixel, red, mask=inside)
    tl.store(image + channel + place * pixel, green, mask=inside)
    tl.store(image + 2 * channel + place * pixel, blue, mask=inside)


@triton.jit
def _store_normalised(image, row, place, inside, red, green, blue):
    """Grey, ImageNet's normalisation, and channels last."""
    grey = _grey(red, green, blue)
    is_grey = tl.load(row + _GREY) > 0
    red = (tl.where(is_grey, grey, red) - _MEAN_R) / _STD_R
    green = (tl.where(is_grey, grey, green) - _MEAN_G) / _STD_G
    blue = (tl.where(is_grey, grey, blue) - _MEAN_B) / _STD_B
    _store(image, place, inside, 1, 3, red, green, blue)
