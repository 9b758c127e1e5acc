"""How many stages run at once on the CPUs and GPUs that a cluster has."""

import pytest
import ray

from ssl_backdoor.specs import Resources
from tasks.ray_fit import devices_of, gpus_each


@pytest.mark.parametrize(
    ("asked", "gpus", "each", "at_once"),
    [
        ({}, 0, 0.0, 16),
        ({}, 2, 1.0, 2),
        ({"gpu_fraction": 0.125}, 1, 0.125, 8),
        ({"gpu_fraction": 0.1}, 1, 0.1, 10),
        ({"gpu_fraction": 1 / 3}, 2, 1 / 3, 6),
        ({"gpu_fraction": 0.6}, 2, 0.6, 2),  # not 3: none lies on two
        ({"gpu_fraction": 0.125, "threads": 4}, 1, 0.125, 4),
        ({"gpu_fraction": 0.125, "device": "cpu"}, 1, 0.0, 16),
    ],
)
def test_stages_at_once(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], gpus: int, each: float, at_once: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0} | ({"GPU": float(gpus)} if gpus else {}))
    resources = Resources(**asked)
    assert (gpus_each(resources), devices_of(resources)) == (each, at_once)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 1.5, float("nan")])
def test_a_share_that_cannot_be(fraction: float) -> None:
    with pytest.raises(ValueError, match="gpu_fraction"):
        Resources(gpu_fraction=fraction)
