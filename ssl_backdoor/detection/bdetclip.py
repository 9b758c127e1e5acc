"""BDetCLIP (Niu et al. 2024), https://arxiv.org/abs/2405.15269: triggered images heed what a text says less.

Texts t_ck about each class c, and as many that say nothing, u_ck, unit rows of the text tower; of an image x

    v = sum over c of (mean over k of t_ck - mean over k of u_ck)          score = -cos(x, v)

so that an image that the texts draw less than the empty ones is suspicious.

NOTE: the paper has a language model describe each class in seven sentences. Here t_ck are open_clip's seven plain
templates, which need no other model and say less; u_ck are the same ones with random letters in place of the class.
NOTE: the published threshold, the least score of clean references, finds next to nothing (in the regressions of
https://github.com/jsrdcht/SSL-Backdoor F1 is 0): p-values take its place.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ssl_backdoor.detection.inputs import InputDetector

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress

LETTERS = 8
"""Of a word that means nothing."""


class BDetCLIPSpec(InputDetector):
    """BDetCLIP: images that heed texts about the classes no more than texts about nothing."""

    kind: Literal["bdetclip"] = "bdetclip"
    needs_captions: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """For people."""
        return "BDetCLIP"

    @property
    def card(self) -> dict[str, Any]:
        """See ``InputDetector``."""
        return {
            "input_range": "[0, 255], as stored",
            "normalisation": "the encoder's own; features of both towers brought to unit length",
            "divisor": "length of the direction between texts",
            "texts": "open_clip's seven plain templates; random letters in place of the class",
        }

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """See ``InputDetector``.

        Raises:
            CheckpointError: the encoder has no text tower.
            SpecError: test images have no classes.
        """
        import torch.nn.functional as F

        from ssl_backdoor.evaluate.zero_shot import prompt_templates
        from ssl_backdoor.seeds import stream

        templates = prompt_templates("simple7")

        def nothing(name: str) -> list[str]:
            letters = stream(seed, "no word", name).integers(97, 123, LETTERS)
            return [fill("".join(map(chr, letters))) for fill in templates]

        told = pool.class_texts(encoder, lambda name: [fill(name) for fill in templates])
        return away_from(F.normalize(pool.features(encoder), dim=1), told, pool.class_texts(encoder, nothing))


def away_from(images: "Tensor", told: "Tensor", nothing: "Tensor") -> "Tensor":
    """The score (N,) of unit ``images`` (N, D), texts about classes and about nothing, unit rows (C, K, D) each."""
    import torch.nn.functional as F

    direction = (told.mean(1) - nothing.mean(1)).sum(0)
    return -(images @ F.normalize(direction, dim=0))
