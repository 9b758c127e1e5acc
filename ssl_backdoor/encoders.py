"""Encoders that others made: read from a file, a folder or a function, used as they want it, adopted into a store.

An encoder is named by one text:

- ``train/KEY``, ``defend/KEY``, ``tamper/KEY``: one of our artifacts;
- ``LIBRARY/NAME:FILE``: a network of timm, torchvision or open_clip with the weights in a safetensors or torch file,
  and ``LIBRARY/NAME:random`` with fresh weights;
- a folder as Hugging Face's ``save_pretrained`` leaves it;
- ``FILE.py:FUNCTION``: a function without arguments that returns a ``torch.nn.Module``, which takes images (B, 3, S, S)
  in [0, 1], does its own preprocessing and gives features (B, D).

No pickle is executed. An adopted encoder is a ``train`` artifact whose key is made of its weights, architecture and
preprocessing, so that every stage takes it as one that was trained here.
"""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from ssl_backdoor import plugins
from ssl_backdoor.data.resident import to_evaluated_frame
from ssl_backdoor.data.views import normalise
from ssl_backdoor.errors import CheckpointError, SpecError
from ssl_backdoor.identity import artifact_key, canonical
from ssl_backdoor.methods.build import Backbone
from ssl_backdoor.methods.clip_towers import TextTower, build_towers, tower_config
from ssl_backdoor.methods.external import (
    External,
    build_external,
    classifier_of,
    load_transformers,
    make_network,
    outline,
    preprocessing_of,
    reason_of,
)
from ssl_backdoor.specs import BackboneSpec, ExternalSpec, OpenCLIPSpec, Spec, Stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from ssl_backdoor.train.checkpoint import load_backbone, load_text_tower, save_backbone, save_text_tower
from ssl_backdoor.train.foreign_weights import fit_weights, read_weights

_ARTIFACT = re.compile(r"(train|defend|tamper)/([0-9a-f]+)")
_FORMS = "train/KEY, LIBRARY/NAME:FILE (timm, torchvision, open_clip), a Hugging Face folder or FILE.py:FUNCTION"


class FrameSpec(Spec):
    """How an image is brought to an encoder."""

    kind: Literal["frame"] = "frame"
    size_px: int = 0
    """Side of the centre crop; 0 leaves images as they are."""
    resize_px: int = 0
    """Shorter side before it."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class AdoptedSpec(Spec):
    """What an adopted encoder is, next to its weights."""

    kind: Literal["adopted"] = "adopted"
    backbone: BackboneSpec
    frame: FrameSpec


class Preprocessing(NamedTuple):
    """What is known better than the library, the folder or the module says; None: as they say."""

    size_px: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    resize_px: int | None = None


@final
class Encoder(nn.Module):
    """A frozen encoder with its preprocessing: images to features."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        frame: FrameSpec,
        text: TextTower | None = None,
        ref: ArtifactRef | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone.eval().requires_grad_(False)
        """Of images normalised by ImageNet's mean and standard deviation, as all backbones here."""
        self.frame = frame
        self.text = text
        """CLIP's text tower, where the weights hold one."""
        self.ref = ref
        """Where it is one of our artifacts."""
        self.remarks = remarks
        self.feature_dim = backbone.feature_dim
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 (B, ``feature_dim``), not normalised, of ``images`` (B, 3, H, W) of any size.

        uint8 from 0 to 255 or float in [0, 1]. They are resized and cropped as ``frame`` says: uint8 as evaluation does
        it, by Pillow; floats by the antialiased filter on tensors, through which gradients flow, up to a rounding the
        same.

        Raises:
            SpecError: ``images`` are something else.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise SpecError(f"expected images (B, 3, H, W), found {tuple(images.shape)}: one image is images[None]")
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        if not pixels.is_floating_point() or bool((pixels < -1e-3).any()) or bool((pixels > 1 + 1e-3).any()):
            raise SpecError(
                f"expected uint8 images or floats in [0, 1], found {images.dtype} from {float(pixels.min()):.3g} to "
                f"{float(pixels.max()):.3g}: do not normalise them, the encoder does"
            )
        if self.frame.size_px:
            pixels = self._framed_bytes(images) if images.dtype == torch.uint8 else self._framed(pixels)
        features: Tensor = self.backbone(normalise(pixels.float())).float()
        return features

    def _framed_bytes(self, images: Tensor) -> Tensor:
        size, resize, how = self.frame.size_px, self.frame.resize_px, self.frame.interpolation
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        framed = np.stack([to_evaluated_frame(one, resize, size, how) for one in pixels])
        return torch.from_numpy(framed).to(images.device).permute(0, 3, 1, 2).float() / 255

    def _framed(self, pixels: Tensor) -> Tensor:
        side, resize, how = self.frame.size_px, self.frame.resize_px, self.frame.interpolation
        height, width = pixels.shape[2:]
        short = min(height, width)
        if resize and short != resize:
            height, width = int(height * resize / short), int(width * resize / short)
            pixels = F.interpolate(pixels, (height, width), mode=how, align_corners=False, antialias=True).clamp(0, 1)
        top, left = round((height - side) / 2), round((width - side) / 2)
        return pixels[:, :, top : top + side, left : left + side]


_AS_SAID = Preprocessing()


def load_encoder(text: str, store: ArtifactStore | None = None, preprocessing: Preprocessing = _AS_SAID) -> Encoder:
    """The encoder that ``text`` names, see above, on the CPU, frozen.

    Args:
        text: such as "torchvision/resnet34:weights.pt".
        store: where our artifacts are looked up.
        preprocessing: takes the place of what the library says; not of our artifacts.

    Raises:
        SpecError: it names nothing, or a network that cannot be made.
        CheckpointError: its weights cannot be read, could run code, do not fit the network or are not finite.
    """
    if found := _ARTIFACT.fullmatch(text):
        return _of_artifact(text, cast(Stage, found[1]), found[2], store)
    before, separator, after = text.partition(":")
    if ".py:" in text:
        return _of_file(text, preprocessing)
    library, slash, name = before.partition("/")
    if library in ("timm", "torchvision", "open_clip") and slash and not Path(text).is_dir():
        if not separator or not after:
            raise SpecError(
                f"expected weights for {before}: give {before}:FILE, or {before}:random for an untrained network"
            )
        return _of_library(library, name, after, preprocessing)
    path = Path(text)
    if path.is_dir():
        return _of_folder(path, preprocessing)
    if path.is_file():
        raise SpecError(f"expected the network next to its weights, found {text!r} alone: give LIBRARY/NAME:{text}")
    raise SpecError(f"expected an encoder as {_FORMS}, found {text!r:.200}, which is none of them and no folder")


def adopt(encoder: Encoder, store: ArtifactStore) -> ArtifactRef:
    """Keep ``encoder`` in ``store``, as a trained one is kept; where it is already there, nothing is done.

    Raises:
        StoreError: the store cannot do its work.
    """
    if encoder.ref is not None:
        return encoder.ref
    started, spec = time.perf_counter(), AdoptedSpec(backbone=encoder.backbone.spec, frame=encoder.frame)
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-adopt-") as scratch:
        folder = Path(scratch)
        save_backbone(encoder.backbone, 1, folder)
        if encoder.text is not None:
            save_text_tower(encoder.text, folder)
        digest = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        inputs = {"weights": digest.hexdigest()}
        key = artifact_key("train", spec, inputs)
        numbers = sum(parameter.numel() for parameter in encoder.backbone.parameters())
        summary = {"adopted": encoder.name, "num_parameters": numbers, "feature_dim": encoder.feature_dim}
        seconds = round(time.perf_counter() - started, 3)
        return store.commit(
            "train", key, folder, spec=canonical(spec), inputs=inputs, summary=summary, seconds=seconds, adopts=True
        )


# ------------------------------------------------------------------------------------------------------- where from


def _of_artifact(text: str, stage: Stage, prefix: str, store: ArtifactStore | None) -> Encoder:
    if store is None:
        raise SpecError(f"expected a store that holds {text}, found none: give store=open_store(...)")
    keys = store.keys(stage, prefix)
    if len(keys) != 1:
        raise SpecError(
            f"expected one {stage} artifact whose key begins with {prefix!r} in {store.root}, "
            f"found {len(keys) or 'none'}; `ssl-backdoor status` lists what is there"
        )
    ref = store.ref(stage, keys[0])
    folder = store.fetch(ref)
    tower = load_text_tower(folder) if (folder / "text.json").is_file() else None
    return Encoder(text, load_backbone(folder), _frame_of(ref, store), tower, ref)


def _frame_of(ref: ArtifactRef, store: ArtifactStore) -> FrameSpec:
    """Of an adopted encoder its own; of one that was trained here the side of its views, whatever changed it since."""
    manifest = store.manifest(ref)
    for role in ("suspect", "model"):
        if role in manifest.inputs:
            for stage in ("train", "tamper", "defend"):
                if (before := store.find(stage, manifest.inputs[role])) is not None:
                    return _frame_of(before, store)
    if manifest.spec.get("kind") == "adopted":
        return FrameSpec.model_validate(manifest.spec.get("frame", {}))
    views = manifest.spec.get("train", {}).get("fit", {}).get("views", {})
    side = views.get("size_px", 224)
    return FrameSpec(size_px=side, resize_px=side)


def _of_library(library: str, name: str, weights: str, asked: Preprocessing) -> Encoder:
    found = preprocessing_of(ExternalSpec.model_validate({"library": library, "name": name}))
    spec = ExternalSpec.model_validate(
        {
            "library": library,
            "name": name,
            "size_px": asked.size_px or found.size_px,
            "resize_px": asked.resize_px or asked.size_px or found.resize_px,
            "interpolation": asked.interpolation or found.interpolation,
            "mean": asked.mean or found.mean,
            "std": asked.std or found.std,
        }
    )
    origin = f"{library}/{name}:{weights}"
    if weights == "random":
        return _as_encoder(origin, spec, None)
    held = read_weights(Path(weights))
    if library == "open_clip" and (both := _both_towers(origin, spec, held)) is not None:
        return both
    return _as_encoder(origin, spec, held, classifier_of(spec))


def _as_encoder(
    origin: str, spec: ExternalSpec, held: Mapping[str, Tensor] | None, classifier: tuple[str, ...] = ()
) -> Encoder:
    # They are compared before memory for the network is taken.
    fitted = None if held is None else fit_weights(held, outline(spec), origin, classifier)
    backbone = build_external(spec, 1, 0, "backbone")
    if fitted is not None:
        backbone.network.load_state_dict(fitted.weights)
    return Encoder(origin, backbone, _frame(spec), None, None, fitted.remarks if fitted else ())


def _frame(spec: ExternalSpec) -> FrameSpec:
    resize = spec.resize_px or spec.size_px
    return FrameSpec(size_px=spec.size_px, resize_px=resize, interpolation=spec.interpolation)


def _both_towers(origin: str, spec: ExternalSpec, held: Mapping[str, Tensor]) -> Encoder | None:
    """Both towers of a CLIP model, where the weights hold them and it is one that can be used so; else None."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import convert_to_custom_text_state_dict

    has_text = any(key.endswith(("text_projection", "text.positional_embedding")) for key in held)
    if not has_text or (spec.mean, spec.std) != (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD):
        return None
    try:
        if tower_config(spec.name)["vision_cfg"]["image_size"] != spec.size_px:
            return None
    except SpecError:
        return None
    clip = OpenCLIPSpec(config=spec.name, normalisation="clip")
    bare = {name.removeprefix("module."): value for name, value in held.items()}
    whole = convert_to_custom_text_state_dict(bare)
    image, text = build_towers(clip, 0)
    for tower, beginning in ((image, "visual."), (text, "text.")):
        own = {
            f"network.{name.removeprefix(beginning)}": one for name, one in whole.items() if name.startswith(beginning)
        }
        scale = {"logit_scale": whole["logit_scale"]} if tower is text and "logit_scale" in whole else {}
        tower.load_state_dict(fit_weights(own | scale, tower.state_dict(), origin).weights)
    text.eval().requires_grad_(False)
    return Encoder(origin, image, _frame(spec), text)


def _of_folder(folder: Path, asked: Preprocessing) -> Encoder:
    """Hugging Face's: config.json, model.safetensors or pytorch_model.bin, and how images are prepared."""
    values = _read_json(folder / "config.json")
    if values is None:
        raise SpecError(
            f"expected config.json in {folder}, as Hugging Face's save_pretrained leaves it, found none: give {_FORMS}"
        )
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")]
    file = next((one for one in files if one.is_file()), None)
    if file is None:
        raise SpecError(f"expected model.safetensors in {folder}, found none: save it again in one file")
    if "architecture" in values:  # of timm, which needs no transformers
        cfg = {**values, **values.get("pretrained_cfg", {})}
        side = cfg.get("input_size", [3, 224, 224])[-1]
        how: Any = "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic"
        mean, std = tuple(cfg.get("mean", (0.485, 0.456, 0.406))), tuple(cfg.get("std", (0.229, 0.224, 0.225)))
        resize = None if asked.size_px else int(side / cfg.get("crop_pct", 0.875))
        said = Preprocessing(
            asked.size_px or side, asked.mean or mean, asked.std or std, asked.interpolation or how, resize
        )
        return _of_library("timm", str(values["architecture"]), str(file), said)
    if file.suffix != ".safetensors":
        raise CheckpointError(f"expected model.safetensors in {folder}, found {file.name}; save it with safetensors")
    prepared = _read_json(folder / "preprocessor_config.json") or {}
    crop, size = prepared.get("crop_size") or {}, prepared.get("size") or {}
    side = asked.size_px or _side(crop) or _side(size) or int(values.get("image_size", 224))
    spec = _checked_spec(
        folder,
        library="huggingface",
        name=re.sub(r"[^A-Za-z0-9._-]", "_", str(values.get("model_type", "model"))),
        size_px=side,
        resize_px=side if asked.size_px else (_side(size) or side),
        interpolation=asked.interpolation or ("bicubic" if prepared.get("resample") == 3 else "bilinear"),
        mean=asked.mean or prepared.get("image_mean", (0.485, 0.456, 0.406)),
        std=asked.std or prepared.get("image_std", (0.229, 0.224, 0.225)),
        config=json.dumps(values, sort_keys=True),
    )
    weighs = sum(value.numel() for value in outline(spec).values())
    if file.stat().st_size < weighs:
        raise CheckpointError(
            f"{file} does not fit config.json, whose network has {weighs:,} numbers, found {file.stat().st_size:,} "
            "bytes; restore the file"
        )
    network, has_pooler = load_transformers(spec, str(folder))
    if not has_pooler:
        spec = spec.model_copy(update={"config": json.dumps({**values, "has_pooler": False}, sort_keys=True)})
    _check_finite(str(folder), network.state_dict())
    return Encoder(str(folder), External(spec, network), _frame(spec))


def _side(value: Any) -> int:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge") or value.get("height") or 0
    return int(value) if isinstance(value, int | float) else 0


def _checked_spec(origin: Path | str, **values: Any) -> ExternalSpec:
    try:
        return ExternalSpec.model_validate({"kind": "external", **values})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{origin}: {where}: {first['msg']} (found {first['input']!r:.80})") from error


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        if file.stat().st_size > 2**20:
            raise SpecError(
                f"expected {file} to be a short text, found {file.stat().st_size:,} bytes: give another folder"
            )
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{file} cannot be read ({reason_of(error)}): restore it") from error
    if not isinstance(values, dict):
        raise SpecError(f"expected one JSON object in {file}, found a {type(values).__name__}: restore it")
    return values


def own_backbone(text: str, size_px: int = 0) -> ExternalSpec:
    """What ``FILE.py:FUNCTION`` makes, as a backbone; the file is loaded, as a plug-in.

    Raises:
        SpecError: the file cannot be loaded.
    """
    file, _, function = text.rpartition(":")
    module = plugins.load(file)
    return _checked_spec(
        text,
        library="own",
        name=f"{Path(file).stem}:{function}",
        size_px=size_px,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        sha256=plugins.digest_of(module),
    )


def _of_file(text: str, asked: Preprocessing) -> Encoder:
    """A module may say ``size_px``, ``interpolation``, ``mean`` and ``std``; else images are as they are, in [0, 1]."""
    spec = own_backbone(text)
    network = make_network(spec, 0, "backbone")
    said = {
        name: getattr(network, name) for name in ("size_px", "interpolation", "mean", "std") if _says(network, name)
    }
    wanted = {name: value for name, value in asked._asdict().items() if value is not None}
    spec = _checked_spec(text, **{**spec.model_dump(exclude={"kind"}), **said, **wanted})
    _check_finite(text, network.state_dict())
    backbone = External(spec, network)
    return Encoder(text, backbone, _frame(spec))


def _says(network: nn.Module, name: str) -> bool:
    return isinstance(getattr(network, name, None), int | str | tuple | list)


def _check_finite(origin: str, weights: Mapping[str, Tensor]) -> None:
    if bad := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(
            f"{origin}: weights that are not finite: {', '.join(bad[:3])} ({len(bad)}); train it again"
        )
