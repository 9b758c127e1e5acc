"""Triggers that cover the whole image: what blended, additive and tiled ones have in common."""

import abc
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ssl_backdoor.poison.triggers.patch import UInt8Images
from ssl_backdoor.seeds import generator
from ssl_backdoor.specs.trigger import Frame, Stamped, Trigger

Floats = npt.NDArray[np.floating[Any]]


class Layer(NamedTuple):
    """What is done to every pixel x of an image: ``keep`` * x + ``add``, in levels of 0 to 255."""

    keep: Floats | float
    """In [0, 1]: (height, width, 3), what broadcasts to it, or one number."""
    add: Floats
    """(height, width, 3), or what broadcasts to it."""


class WholeTrigger(Trigger):
    """A trigger on every pixel, without a box. Abstract."""

    @abc.abstractmethod
    def layer(self, height: int, width: int, frame: Frame, rng: np.random.Generator) -> Layer:
        """On images of that size; one that is fresh draws from ``rng``, the image's own stream, and others do not.

        Raises:
            SpecError: the trigger does not fit images of that size.
        """

    def apply(self, images: UInt8Images, seeds: Sequence[int], frame: Frame, source: bytes | None = None) -> Stamped:
        """See ``Trigger``; levels are rounded to the nearest, then held in [0, 255]."""
        height, width = images.shape[1:3]
        stamped = np.empty_like(images)
        for index, seed in enumerate(seeds):
            drawn = self.layer(height, width, frame, generator(seed)) if self.is_fresh else None
            keep, add = drawn or _fixed(self, height, width, frame)
            stamped[index] = np.rint(keep * images[index] + add).clip(0, 255)
        return Stamped(stamped, None)


@lru_cache(maxsize=16)
def _fixed(trigger: WholeTrigger, height: int, width: int, frame: Frame) -> Layer:
    return trigger.layer(height, width, frame, generator(0))
