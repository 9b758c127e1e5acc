"""Every operator against torchvision's on the same parameters, and the parameters' distributions against its own."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms import InterpolationMode

from ssl_backdoor.data import views
from ssl_backdoor.data.view_parameters import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ViewParameters,
    blur_reach_px,
    draw_uniform,
    parameters_of,
)
from ssl_backdoor.data.views import apply, evaluation_view, make_views
from ssl_backdoor.errors import DataError
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ViewsSpec

STRONG = ViewsSpec(size_px=16, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.2, jitter_p=0.8)
PLAIN = {"flip_p": 0.0, "jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0}
STILL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def random_images(n: int, height: int, width: int) -> Tensor:
    """Noise, with flat, grey, black, white and pure-colour images among it: the corners of the HSV cone."""
    images = torch.randint(0, 256, (n, 3, height, width), generator=torch_generator(0, "images"), dtype=torch.uint8)
    for i, colour in enumerate(itertools.product((0, 255), repeat=3)):
        images[i, :, : height // 2] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    images[8] = images[8, :1]
    return images


def draw(n: int, height: int, width: int, spec: ViewsSpec, seed: int = 1) -> ViewParameters:
    return parameters_of(draw_uniform(n, torch_generator(seed, "views")), height, width, spec)


def denormalise(x: Tensor) -> Tensor:
    return x * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]


def reference_crop(image: Tensor, p: ViewParameters, i: int, spec: ViewsSpec) -> Tensor:
    box = [int(edge[i]) for edge in (p.top, p.left, p.height, p.width)]
    mode = InterpolationMode(spec.interpolation)
    view = tv.resized_crop(image / 255, *box, [spec.size_px] * 2, interpolation=mode, antialias=True)
    return (tv.horizontal_flip(view) if p.flip[i] else view).clamp(0, 1)


def reference_view(image: Tensor, p: ViewParameters, i: int, spec: ViewsSpec) -> Tensor:
    """One view, operator by operator, by torchvision, in its published order (the flip's place is immaterial)."""
    view = reference_crop(image, p, i, spec)
    if p.jitter[i]:
        for op in p.rank[i].argsort().tolist():
            function, factor = [
                (tv.adjust_brightness, p.brightness),
                (tv.adjust_contrast, p.contrast),
                (tv.adjust_saturation, p.saturation),
                (tv.adjust_hue, p.hue),
            ][op]
            view = function(view, float(factor[i]))
    if p.grey[i]:
        view = tv.rgb_to_grayscale(view, num_output_channels=3)
    if p.blur[i]:
        view = tv.gaussian_blur(view, [2 * blur_reach_px(spec) + 1] * 2, [float(p.sigma[i])] * 2)
    return tv.normalize(view, list(IMAGENET_MEAN), list(IMAGENET_STD))


def assert_close(found: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# --------------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size_px"), [(40, 57, 16), (18, 16, 32), (24, 24, 24), (300, 97, 20)])
def test_crop_resize_and_flip_are_torchvisions(height: int, width: int, size_px: int, interpolation: str) -> None:
    spec = ViewsSpec.model_validate(
        {**PLAIN, "size_px": size_px, "interpolation": interpolation, "flip_p": 0.5, "crop_scale": (0.05, 1.0)}
    )
    images, p = random_images(24, height, width), draw(24, height, width, spec)
    found = denormalise(apply(images, p, spec))
    assert_close(found, torch.stack([reference_crop(image, p, i, spec) for i, image in enumerate(images)]))
    assert 0 < p.flip.sum() < 24


def test_a_fixed_crop_is_torchvisions_random_crop() -> None:
    """The pixels as they are, from places that are all equally likely."""
    spec = ViewsSpec(**PLAIN, size_px=9, crop="fixed")
    images, p = random_images(4000, 12, 13), draw(4000, 12, 13, spec)
    found = denormalise(apply(images, p, spec)) * 255
    for i in range(20):
        assert_close(found[i], tv.crop(images[i], int(p.top[i]), int(p.left[i]), 9, 9).float(), atol=1e-3)
    theirs = [v1.RandomCrop.get_params(images[0], (9, 9)) for _ in range(2000)]
    places = sorted({(top, left) for top, left, _, _ in theirs})
    counts = [int(((p.top == top) & (p.left == left)).sum()) for top, left in places]
    assert (len(places), sum(counts)) == (4 * 5, 4000)
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    with pytest.raises(DataError, match="a fixed crop of 9 px needs sides at least as long"):
        draw(2, 8, 30, spec)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
        ("hue", tv.adjust_hue),
    ],
)
def test_each_jitter_operator_alone_is_torchvisions(name: str, function: Callable[[Tensor, float], Tensor]) -> None:
    spec = ViewsSpec.model_validate(
        {
            **PLAIN,
            **STILL,
            "size_px": 12,
            "crop_scale": (1.0, 1.0),
            "jitter_p": 1.0,
            name: 0.5 if name == "hue" else 0.9,
        }
    )
    images, p = random_images(32, 12, 12), draw(32, 12, 12, spec)
    factors = getattr(p, name).tolist()
    assert max(factors) - min(factors) > 0.5
    expected = torch.stack([function(image / 255, factor) for image, factor in zip(images, factors, strict=True)])
    assert_close(denormalise(apply(images, p, spec)), expected)


@pytest.mark.parametrize(
    "strengths", [STILL | {"hue": 0.2}, STILL | {"contrast": 0.5}, {"saturation": 0.0}, {"hue": 0.0}]
)
def test_jitter_with_operators_switched_off(strengths: dict[str, float]) -> None:
    spec = STRONG.model_copy(update=strengths)
    images, p = random_images(48, 16, 16), draw(48, 16, 16, spec)
    expected = torch.stack([reference_view(image, p, i, spec) for i, image in enumerate(images)])
    assert_close(apply(images, p, spec), expected, atol=2e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_all_operators_each_sample_in_its_own_order(interpolation: str) -> None:
    spec = STRONG.model_copy(update={"interpolation": interpolation, "grey_p": 0.5, "blur_p": 0.5})
    images, p = random_images(96, 20, 20), draw(96, 20, 20, spec)
    expected = torch.stack([reference_view(image, p, i, spec) for i, image in enumerate(images)])
    assert_close(apply(images, p, spec), expected, atol=2e-4)
    assert len({tuple(rank) for rank in p.rank[p.jitter].tolist()}) > 12
    assert len({(bool(j), bool(g), bool(b)) for j, g, b in zip(p.jitter, p.grey, p.blur, strict=True)}) == 8


@pytest.mark.parametrize("size_px", [8, 16, 40])
def test_blur_is_torchvisions(size_px: int) -> None:
    spec = ViewsSpec.model_validate(PLAIN | {"size_px": size_px, "crop_scale": (1.0, 1.0), "blur_p": 1.0})
    images, p = random_images(16, size_px, size_px), draw(16, size_px, size_px, spec)
    kernel = [2 * blur_reach_px(spec) + 1] * 2
    expected = [tv.gaussian_blur(image / 255, kernel, [float(s)] * 2) for image, s in zip(images, p.sigma, strict=True)]
    assert_close(denormalise(apply(images, p, spec)), torch.stack(expected))


def test_grey_is_torchvisions() -> None:
    spec = ViewsSpec.model_validate(PLAIN | {"size_px": 16, "crop_scale": (1.0, 1.0), "grey_p": 0.5})
    images, p = random_images(32, 16, 16), draw(32, 16, 16, spec)
    found = denormalise(apply(images, p, spec))
    assert_close(found[p.grey], tv.rgb_to_grayscale(images[p.grey] / 255, num_output_channels=3))
    assert_close(found[~p.grey], images[~p.grey] / 255)


def test_evaluation_view_only_normalises() -> None:
    images = random_images(9, 10, 14)
    expected = tv.normalize(images / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert_close(evaluation_view(images), expected)


def test_resampling_weights_of_a_row_sum_to_one_inside_the_crop() -> None:
    start, length = torch.tensor([3.0, 0.0, 9.0]), torch.tensor([5.0, 10.0, 1.0])
    for interpolation in ("bilinear", "bicubic"):
        weights = views.resampling_matrix(start, length, None, 10, 4, interpolation)
        assert_close(weights.sum(2), torch.ones(3, 4))
        assert not weights[0, :, :3].any()
        assert not weights[0, :, 8:].any()
        assert torch.equal(weights[2, :, 9], torch.ones(4))


# --------------------------------------------------------------------------------------------------- randomness


def test_views_are_a_function_of_the_generator() -> None:
    images = random_images(16, 20, 20)
    once, again, other = (make_views(images, STRONG, torch_generator(seed, "views")) for seed in (5, 5, 6))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.shape == (16, 3, 16, 16)
    assert once.dtype == torch.float32
    assert once.isfinite().all()
    assert once.is_contiguous()


def test_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    make_views(random_images(9, 16, 16), STRONG, torch_generator(0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_switching_operators_off_shifts_no_other_parameter() -> None:
    off = ViewsSpec.model_validate({**PLAIN, **STILL, "size_px": 16})
    p, q = draw(64, 20, 30, STRONG), draw(64, 20, 30, off)
    for name in ("top", "left", "height", "width", "rank", "sigma"):
        assert torch.equal(getattr(p, name), getattr(q, name)), name
    assert not any(getattr(q, name).any() for name in ("flip", "jitter", "grey", "blur"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_slice_of_the_batch_gives_the_slice_of_the_views(interpolation: str) -> None:
    spec = STRONG.model_copy(update={"interpolation": interpolation})
    images, p = random_images(64, 20, 20), draw(64, 20, 20, spec)
    whole = apply(images, p, spec)
    for part in (slice(0, 32), slice(32, 64), slice(7, 8), slice(10, 10)):
        assert_close(apply(images[part], p.rows(part), spec), whole[part], atol=1e-5)
    shuffled = torch.randperm(64, generator=torch_generator(0, "order"))
    assert_close(apply(images[shuffled], p.rows(shuffled), spec), whole[shuffled], atol=1e-5)


def test_rows_that_no_operator_marks_pass_unchanged() -> None:
    images = random_images(9, 16, 16)
    p = draw(9, 16, 16, STRONG)
    none = torch.zeros(9, dtype=torch.bool)
    still = p._replace(jitter=none, grey=none, blur=none)
    plain = STRONG.model_copy(update={"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0})
    assert_close(apply(images, still, STRONG), apply(images, still, plain))


def test_operators_act_at_their_rates() -> None:
    spec = ViewsSpec(size_px=16, flip_p=0.5, jitter_p=0.8, grey_p=0.1, blur_p=0.3)
    p = draw(20_000, 16, 16, spec)
    for marks, rate in ((p.flip, 0.5), (p.jitter, 0.8), (p.grey, 0.1), (p.blur, 0.3)):
        assert scipy.stats.binomtest(int(marks.sum()), len(marks), rate).pvalue > 0.01
    together = int((p.flip & p.jitter).sum()), int((p.grey & p.blur).sum())
    assert scipy.stats.binomtest(together[0], 20_000, 0.4).pvalue > 0.01
    assert scipy.stats.binomtest(together[1], 20_000, 0.03).pvalue > 0.01


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("brightness", 0.4, 1.6),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.0, 2.2),
        ("hue", -0.2, 0.2),
        ("sigma", 0.1, 2.0),
    ],
)
def test_factors_are_uniform_over_torchvisions_ranges(name: str, low: float, high: float) -> None:
    spec = ViewsSpec(size_px=16, brightness=0.6, contrast=0.4, saturation=1.2, hue=0.2)
    values = getattr(draw(5_000, 16, 16, spec), name).double().numpy()
    assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_jitter_orders_are_uniform_over_all_permutations() -> None:
    ranks = draw(24_000, 16, 16, STRONG).rank.tolist()
    counts = [ranks.count(list(order)) for order in itertools.permutations(range(4))]
    assert sum(counts) == 24_000
    assert scipy.stats.chisquare(counts).pvalue > 0.01


# ----------------------------------------------------------------------------------------------- crop boxes


def torchvision_boxes(n: int, height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        boxes = [v1.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]
    return np.array(boxes, dtype=float)


def our_boxes(n: int, height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    p = draw(n, height, width, ViewsSpec(size_px=16, crop_scale=scale), seed=2)
    return torch.stack(p[:4], 1).double().numpy()


def aspects(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """What is compared: area, ratio, and the place of the corner in the room left for it."""
    top, left, h, w = boxes.T
    return {
        "area": h * w,
        "ratio": w / h,
        "top": top / np.maximum(height - h, 1),
        "left": left / np.maximum(width - w, 1),
    }


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.2, 1.0)), (224, 300, (0.08, 1.0)), (40, 64, (0.9, 1.0)), (30, 90, (0.7, 1.0)), (90, 30, (0.7, 1.0))],
)
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    ours = aspects(our_boxes(4_000, height, width, scale), height, width)
    theirs = aspects(torchvision_boxes(4_000, height, width, scale), height, width)
    for name, values in ours.items():
        assert scipy.stats.ks_2samp(values, theirs[name]).pvalue > 0.05 / 20, name  # four comparisons on five frames


def test_the_comparison_of_crop_boxes_can_fail() -> None:
    ours = aspects(our_boxes(6_000, 32, 32, (0.25, 1.0)), 32, 32)
    theirs = aspects(torchvision_boxes(6_000, 32, 32, (0.2, 1.0)), 32, 32)
    assert scipy.stats.ks_2samp(ours["area"], theirs["area"]).pvalue < 1e-6


@pytest.mark.parametrize(("height", "width"), [(32, 32), (10, 50), (50, 10), (9, 8)])
def test_crop_boxes_are_whole_and_inside(height: int, width: int) -> None:
    top, left, h, w = our_boxes(3_000, height, width, (0.01, 1.0)).T
    assert all((edge == edge.round()).all() for edge in (top, left, h, w))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h).max() == height
    assert (left + w).max() == width


@pytest.mark.parametrize(("height", "width"), [(10, 50), (50, 10)])
def test_central_fallback_is_torchvisions(height: int, width: int) -> None:
    """A crop of the whole of so long an image never fits the ratios, so every box is the fallback."""
    assert our_boxes(4, height, width, (1.0, 1.0)).tolist() == torchvision_boxes(4, height, width, (1.0, 1.0)).tolist()


# --------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(4, 3, 16, 16),
        torch.zeros(4, 1, 16, 16, dtype=torch.uint8),
        torch.zeros(3, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(4, 3, 16, dtype=torch.uint8),
    ],
)
def test_wrong_images_are_refused_in_one_sentence(images: Tensor) -> None:
    with pytest.raises(DataError, match=r"views need \(4, 3, height, width\) uint8 images"):
        apply(images, draw(4, 16, 16, STRONG), STRONG)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_on_a_gpu_are_those_of_the_cpu() -> None:
    images = random_images(64, 20, 20)
    p = draw(64, 20, 20, STRONG)
    assert_close(apply(images.cuda(), p, STRONG).cpu(), apply(images, p, STRONG), atol=2e-4)
