"""The suspect's two towers, for the defences of CLIP."""

from pathlib import Path

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.clip_towers import ImageTower, TextTower
from ssl_backdoor.train.checkpoint import load_backbone, load_text_tower


def load_towers(suspect: Path, defence: str) -> tuple[ImageTower, TextTower]:
    """Image and text tower in ``suspect``, on the CPU, in eval mode, without gradient.

    Raises:
        CheckpointError: They cannot be read.
        SpecError: The suspect is no CLIP model.
    """
    image = load_backbone(suspect)
    if not isinstance(image, ImageTower):
        raise SpecError(
            f"the defence {defence} needs the two towers of a CLIP model, but the suspect is a {image.spec.kind}; "
            "use defence compress"
        )
    return image, load_text_tower(suspect)
