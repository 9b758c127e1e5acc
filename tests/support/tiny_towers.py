"""The smallest CLIP, freshly drawn and frozen."""

from ssl_backdoor.methods.clip_towers import ImageTower, TextTower, build_towers
from ssl_backdoor.specs import OpenCLIPSpec

SPEC = OpenCLIPSpec(config="tiny-resnet8-w8")


def tiny_towers(seed: int = 0) -> tuple[ImageTower, TextTower]:
    image, text = build_towers(SPEC, seed)
    return image.eval().requires_grad_(False), text.eval().requires_grad_(False)


def tiny_text_tower() -> TextTower:
    return tiny_towers()[1]
