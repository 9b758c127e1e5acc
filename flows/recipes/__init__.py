"""Named experiments: a recipe is a function of (pairs, seeds) that states a question and the runs that answer it.

``pairs`` takes the first N of the recipe's trigger/target pairs, all fixed before the first run; ``seeds`` repeats
each pair with seeds 0 to N - 1.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flows.recipes import cifar10, demo, saha2022
from ssl_backdoor.specs import ReportSpec


class Recipe(NamedTuple):
    """A recipe and what ``--pairs`` and ``--seeds`` are when not given."""

    build: Callable[[int, int], ReportSpec]
    max_pairs: int
    pairs: int
    seeds: int
    needs_data: bool
    summary: str


RECIPES: Mapping[str, Recipe] = {
    "demo": Recipe(demo.demo, 1, 1, 1, False, "one pinned pair on the embedded image set; minutes on two cores"),
    "cifar10_byol": Recipe(cifar10.cifar10_byol, 10, 10, 1, True, "ten pairs, BYOL, 5 classes of CIFAR-10 at 16 px"),
    "cifar10_moco": Recipe(cifar10.cifar10_moco, 10, 10, 1, True, "ten pairs, MoCo v2, 5 classes of CIFAR-10 at 16 px"),
    "saha2022_moco": Recipe(saha2022.saha2022_moco, 10, 10, 1, True, "the paper's scale: ImageNet-100, ResNet-18"),
    "saha2022_byol": Recipe(saha2022.saha2022_byol, 10, 10, 1, True, "the paper's scale: ImageNet-100, ResNet-18"),
}
