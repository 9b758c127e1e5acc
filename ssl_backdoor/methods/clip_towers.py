"""The two towers of CLIP, https://arxiv.org/abs/2103.00020, from open_clip's parts: fresh, nothing is downloaded.

open_clip is an extra of this project and imported by the functions that need it; all other methods do without.

Shapes: B images or captions, S px side, L tokens, D embedding.
"""

import difflib
import functools
import gzip
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor, nn

from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import SplitBatchNorm
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import OpenCLIPSpec

CONFIGS = Path(__file__).parent / "clip_configs"
NUM_BYTE_TOKENS = 512
"""Tokens before the merges: 256 bytes, each within a word and at its end."""
NUM_SPECIAL_TOKENS = 2
FULL_VOCAB_SIZE = 49_408
MAX_SCALE = 100.0


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""OPENAI_DATASET_MEAN and _STD of open_clip/constants.py."""


@final
class ImageTower(nn.Module):
    """ImageNet-normalised images (B, 3, S, S) to embeddings (B, ``feature_dim``), not normalised.

    Where the spec says so they are first brought to CLIP's own mean and standard deviation.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, spec: OpenCLIPSpec, network: nn.Module, config: dict[str, Any], bn_groups: int):
        super().__init__()
        self.spec = spec
        self.bn_groups = bn_groups
        self.feature_dim = int(config["embed_dim"])
        # open_clip's own networks hold a position embedding for one side; those of timm see to theirs.
        self.side_px = 0 if "timm_model_name" in config["vision_cfg"] else int(config["vision_cfg"]["image_size"])
        self.network = split_batch_norms(network, bn_groups)
        mean, std, own_mean, own_std = map(torch.tensor, (IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN, CLIP_STD))
        self.register_buffer("pixel_scale", (std / own_std).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", ((mean - own_mean) / own_std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images to embeddings.

        Raises:
            SpecError: The network reads images of another side.
        """
        if self.side_px not in (0, images.shape[-1]):
            raise SpecError(
                f"{self.spec.config} reads images of {self.side_px} px, found {images.shape[-1]} px; set "
                "fit.views.size_px and evaluation.crop_px to it, or take one of the tiny-... configurations"
            )
        if self.spec.normalisation == "clip":
            images = torch.addcmul(self.pixel_shift, images, self.pixel_scale)
        embeddings: Tensor = self.network(images)
        return embeddings


@final
class TextTower(nn.Module):
    """Tokens (B, L) int64 to embeddings (B, ``feature_dim``), not normalised; owns CLIP's scale.

    ``logit_scale`` is the logarithm of the scale, 1 / temperature.
    """

    causal_mask: Tensor

    def __init__(self, spec: OpenCLIPSpec, network: Any, config: dict[str, Any]):
        super().__init__()
        self.spec = spec
        self.feature_dim = int(config["embed_dim"])
        self.network = network
        self.context_length = int(network.context_length)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("causal_mask", network.attn_mask, persistent=False)
        self.tokenizer = _tokenizer(int(network.vocab_size), self.context_length)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(n, ``context_length``) int64, zero behind the end; a longer text is cut."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to embeddings: the state at the text's end, projected; what open_clip's forward gives, in less time.

        A token sees those before it and no others. So what lies behind the batch's longest text is left out, and the
        last block works out the state at the end alone: with one block, a third of the time.
        """
        network: Any = self.network
        ends = tokens.argmax(1)  # the end has the highest number
        length = int(ends.max()) + 1
        x = network.token_embedding(tokens[:, :length]) + network.positional_embedding[:length]
        *blocks, last = network.transformer.resblocks
        for block in blocks:
            x = block(x, attn_mask=self.causal_mask[:length, :length])
        seen = last.ln_1(x)
        rows = torch.arange(len(tokens), device=tokens.device)
        behind = torch.arange(length, device=tokens.device) > ends[:, None]
        found = last.attn(seen[rows, ends][:, None], seen, seen, key_padding_mask=behind, need_weights=False)[0]
        x = x[rows, ends] + last.ls_1(found[:, 0])
        x = x + last.ls_2(last.mlp(last.ln_2(x)))
        embeddings: Tensor = network.ln_final(x) @ network.text_projection
        return embeddings

    def clamp_logit_scale_(self) -> None:
        """Clamp the logit scale to [1, 100] in place, as open_clip does after each step."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(MAX_SCALE))


def build_towers(
    spec: OpenCLIPSpec, seed: int, role: str = "backbone", bn_groups: int = 1
) -> tuple[ImageTower, TextTower]:
    """Both towers on the CPU, drawn from the stream ``role`` under ``seed`` alone; ``bn_groups`` of one replica.

    Raises:
        SpecError: open_clip is missing, has no such configuration, or one that would need a download or is not a pair
            of plain towers; or BatchNorm of this network cannot be taken in groups.
    """
    open_clip = load_open_clip()
    config = tower_config(spec.config)
    # open_clip draws from torch's default generator: it is lent to the stream, then put back.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch_generator(seed, role).get_state())
        model = open_clip.CustomTextCLIP(**config)
    return ImageTower(spec, model.visual, config, bn_groups), TextTower(spec, model.text, config)


def load_open_clip() -> ModuleType:
    """open_clip with our configurations in its list.

    Raises:
        SpecError: It cannot be imported.
    """
    try:
        import open_clip
    except ImportError as error:
        raise SpecError(
            f"CLIP needs open_clip, but it cannot be imported ({error}); run: pip install 'open_clip_torch>=3.3,<4'"
        ) from error
    from ssl_backdoor.methods.clip_trunks import register_timm_models

    if not any(name.startswith("tiny-resnet8") for name in open_clip.list_models()):
        register_timm_models()
        open_clip.add_model_config(CONFIGS)
    module: ModuleType = open_clip
    return module


def tower_config(name: str) -> dict[str, Any]:
    """The configuration ``name``, as ``CustomTextCLIP`` takes it.

    Raises:
        SpecError: open_clip is missing, lacks it, or it cannot be used here.
    """
    open_clip = load_open_clip()
    names = open_clip.list_models()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
        raise SpecError(
            f"open_clip has no configuration {name!r}; near it are {', '.join(near) or 'none'}, "
            f"and for small images there are {', '.join(sorted(path.stem for path in CONFIGS.glob('*.json')))}"
        )
    config: dict[str, Any] = open_clip.get_model_config(name)
    if reason := _unfit(name, config):
        raise SpecError(f"the configuration {name!r} cannot be used here: {reason}; RN50 and ViT-B-32 can")
    config.pop("custom_text", None)
    config["vision_cfg"]["timm_model_pretrained"] = False
    return config


def _unfit(name: str, config: dict[str, Any]) -> str:
    """Why a configuration cannot be used; empty where it can."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config or "init_logit_bias" in config or "siglip" in name.lower():
        return "it is not a pair of towers under CLIP's loss"
    if {"hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs"} & text.keys():
        return "its text tower or tokenizer would have to be downloaded"
    if {"no_causal_mask", "embed_cls", "pool_type", "proj_type", "proj_bias", "output_tokens"} & text.keys():
        return "its text tower is not CLIP's own: causal, read at the text's end, with a plain projection"
    if any(vision.get(field) for field in ("patch_dropout", "timm_drop", "timm_drop_path")):
        return "its dropout draws from torch's global generator, so that a training could not be repeated"
    return ""


def split_batch_norms(network: nn.Module, groups: int) -> nn.Module:
    """``network`` with BatchNorm over ``groups`` parts of the batch."""
    if groups == 1:
        return network
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if type(part) is not nn.BatchNorm2d:
                raise SpecError(f"bn_groups must be 1 for a network with {type(part).__name__}, found {groups}")
            replacement = SplitBatchNorm(part.num_features, groups)
            replacement.load_state_dict(part.state_dict())
            network.set_submodule(name, replacement)
    return network


@functools.cache
def _tokenizer(vocab_size: int, context_length: int) -> Any:
    """open_clip's BPE tokenizer; a smaller vocabulary has the first, most frequent, of its merges alone."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    if vocab_size == FULL_VOCAB_SIZE:
        return SimpleTokenizer(context_length=context_length)
    num_merges = vocab_size - NUM_BYTE_TOKENS - NUM_SPECIAL_TOKENS
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = [next(file).rstrip("\n") for _ in range(1 + num_merges)]  # the first line is a title
    with tempfile.TemporaryDirectory() as folder:
        merges = Path(folder) / "merges.txt.gz"
        merges.write_bytes(gzip.compress("\n".join(lines).encode()))
        return SimpleTokenizer(bpe_path=str(merges), context_length=context_length)
