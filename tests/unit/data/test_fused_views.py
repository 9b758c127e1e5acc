"""The kernels against ``views``: compiled where there is a GPU, elsewhere in Triton's interpreter (conftest.py)."""

from typing import Any

import pytest
import torch
from test_views import STRONG, draw, random_images

from ssl_backdoor.data import fused_views, views
from ssl_backdoor.data.views import apply

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOTHING = {"flip_p": 0.0, "jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0}


@pytest.mark.parametrize(
    ("height", "width", "changes"),
    [
        (20, 20, {"grey_p": 0.5, "blur_p": 0.5}),
        (41, 30, {"blur_p": 0.0, "interpolation": "bicubic"}),
        (12, 15, {"size_px": 37, "blur_p": 0.5}),  # two blocks of pixels, enlarged
        (20, 20, {"contrast": 0.0, "flip_p": 0.0}),
        (20, 20, {"brightness": 0.0, "saturation": 0.0, "hue": 0.0}),
        (20, 20, NOTHING),
    ],
)
@pytest.mark.slow
def test_each_view_is_that_of_the_operators(height: int, width: int, changes: dict[str, Any]) -> None:
    spec = STRONG.model_copy(update=changes)
    images, parameters = random_images(24, height, width), draw(24, height, width, spec)
    found = fused_views.apply(images.to(DEVICE), fused_views.table_of(parameters, spec).to(DEVICE), spec)
    torch.testing.assert_close(found.cpu(), apply(images, parameters, spec), atol=2e-5, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_images_need_not_lie_in_one_piece() -> None:
    images, parameters = random_images(10, 20, 20).mT, draw(10, 20, 20, STRONG)
    found = fused_views.apply(images.to(DEVICE), fused_views.table_of(parameters, STRONG).to(DEVICE), STRONG)
    torch.testing.assert_close(found.cpu(), apply(images, parameters, STRONG), atol=2e-5, rtol=0)


def test_without_a_compiler_views_are_made_by_operators_and_that_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    device = torch.device(DEVICE)
    views._load_fused_views.cache_clear()
    assert views._load_fused_views(device) is fused_views
    views._load_fused_views.cache_clear()
    monkeypatch.setattr(fused_views, "smoke_test", fails)
    with caplog.at_level("WARNING", "ssl_backdoor"):
        assert views._load_fused_views(device) is None
        assert views._load_fused_views(device) is None
    assert [record.getMessage() for record in caplog.records] == [
        "views fall back to eager operators (about 10 times slower on a GPU): Triton cannot compile here "
        "(RuntimeError: Failed to find C compiler); install a C compiler and Python's headers"
    ]
    views._load_fused_views.cache_clear()
