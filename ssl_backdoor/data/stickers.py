"""Stickers: patches of a trigger's style that mean nothing, each with a pattern of its own, on training images."""

from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.errors import SpecError
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import PatchStickersSpec, StickersSpec


def bears_sticker(key: str, stickers: StickersSpec) -> bool:
    """Whether the training image ``key`` gets one: ``train_frac`` of them do, whatever their class and order."""
    if not isinstance(stickers, PatchStickersSpec):
        return False
    return sub_seed(stickers.seed, "sticker", key) < stickers.train_frac * 2**63


def put_sticker(image: UInt8Image, key: str, stickers: StickersSpec) -> UInt8Image:
    """``image``, uint8 (height, width, 3) in the stored frame, under the pattern and at the place of ``key`` alone.

    Raises:
        SpecError: there are no stickers, their style has no other patterns, or the patch is larger than the image.
    """
    if not isinstance(stickers, PatchStickersSpec):
        raise SpecError("the dataset has no stickers: set dataset.stickers")
    pattern = stickers.style.unseen(sub_seed(stickers.seed, "sticker", "pattern", key))
    if pattern is None:
        raise SpecError(f"stickers need a style that has other patterns, and trigger {stickers.style.kind} has none")
    return pattern.apply_one(image, sub_seed(stickers.seed, "sticker", "place", key), "train")[0]
