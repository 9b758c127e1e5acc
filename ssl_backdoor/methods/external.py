"""Encoders of other libraries and of users' files, as backbones: freshly made, nothing is downloaded.

timm, torchvision, open_clip and transformers are imported by the functions that need them.

Shapes: B images, S px side, D features.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor import plugins
from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD
from ssl_backdoor.errors import CheckpointError, SpecError, to_printable_line
from ssl_backdoor.methods.clip_towers import load_open_clip, split_batch_norms
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ExternalSpec

_MAX_LAYERS, _MAX_DIM = 1000, 10**7
"""In a configuration that came with weights: its network is outlined before its size is compared with theirs."""
_TRIED_PX = 64
"""Side of the images that a network for any side is tried on."""


@final
class External(nn.Module):
    """ImageNet-normalised images (B, 3, H, W), of any side, to features (B, ``feature_dim``).

    As everywhere here images come normalised by ImageNet's mean and standard deviation; they are brought to the
    network's own, and to its side, within.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, spec: ExternalSpec, network: nn.Module, bn_groups: int = 1):
        """Raises SpecError where the network does not make one row of features of each image."""
        super().__init__()
        self.spec = spec
        self.bn_groups = bn_groups
        self.network = split_batch_norms(network, bn_groups)
        mean, std, own_mean, own_std = map(torch.tensor, (IMAGENET_MEAN, IMAGENET_STD, spec.mean, spec.std))
        self.register_buffer("pixel_scale", (std / own_std).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", ((mean - own_mean) / own_std).view(3, 1, 1), persistent=False)
        self.feature_dim = self._try()

    def forward(self, images: Tensor) -> Tensor:
        """Images to features.

        Raises:
            SpecError: The network gives something else.
        """
        side = self.spec.size_px
        if side and images.shape[-2:] != (side, side):
            images = F.interpolate(
                images, (side, side), mode=self.spec.interpolation, align_corners=False, antialias=True
            )
        found: Any = self.network(torch.addcmul(self.pixel_shift, images, self.pixel_scale))
        if isinstance(found, Tensor) and found.ndim == 4 and found.shape[2:] == (1, 1):
            found = found.flatten(1)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise SpecError(
                f"expected {self.spec.name} to make features (B, D) of images ({len(images)}, 3, {images.shape[-2]}, "
                f"{images.shape[-1]}), found {what}: pool over places or tokens"
            )
        features: Tensor = found
        return features

    def _try(self) -> int:
        """The number of features, of two grey images."""
        side, was_training = self.spec.size_px or _TRIED_PX, self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                found = self(torch.zeros(2, 3, side, side))
        except SpecError:
            raise
        except Exception as error:  # of whoever wrote the network
            raise SpecError(
                f"{self.spec.name} fails on images of {side} px ({reason_of(error)}): set its image size, or "
                "another network"
            ) from error
        self.network.train(was_training)
        return int(found.shape[1])


class Preprocessing(NamedTuple):
    """How a network wants its images."""

    size_px: int
    resize_px: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build_external(spec: ExternalSpec, bn_groups: int, seed: int, role: str) -> External:
    """The network of ``spec`` on the CPU, drawn from the stream ``role`` under ``seed`` alone.

    A student's weights are drawn even where a user's function gives others.

    Raises:
        SpecError: the library is missing or has no such network, or it makes no features.
    """
    return External(spec, make_network(spec, seed, role), bn_groups)


def make_network(spec: ExternalSpec, seed: int, role: str) -> nn.Module:
    """What ``build_external`` wraps.

    Raises:
        SpecError: as ``build_external``.
    """
    # The libraries draw from torch's default generator: it is lent to the stream, then put back.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch_generator(seed, role).get_state())
        network = _make(spec)
        if spec.library == "own" and role == "student":
            _reset(network)
    return network


def _make(spec: ExternalSpec) -> nn.Module:
    """From torch's default generator, without classifier and dropout."""
    make: dict[str, Callable[[ExternalSpec], nn.Module]] = {
        "timm": _of_timm,
        "torchvision": _of_torchvision,
        "open_clip": _of_open_clip,
        "huggingface": _of_transformers,
        "own": _of_file,
    }
    try:
        network = make[spec.library](spec)
    except (SpecError, ImportError):
        raise
    except Exception as error:  # of libraries that say what does not fit in all sorts of ways
        raise SpecError(f"{spec.library}/{spec.name} cannot be made: {reason_of(error)}") from error
    parts: Iterable[Any] = network.modules()
    for part in parts:
        # They draw from torch's global generator: a training could not be repeated.
        if isinstance(part, nn.modules.dropout._DropoutNd) or type(part).__name__ == "StochasticDepth":
            part.p = 0.0
        elif type(part).__name__ == "DropPath":
            part.drop_prob = 0.0
    return network


def num_external_bytes(spec: ExternalSpec) -> int:
    """Bytes of the weights and buffers, without making them; 0 of a user's function, which makes them as it likes."""
    if spec.library == "own":
        return 0
    return sum(value.nbytes for value in outline(spec).values())


def outline(spec: ExternalSpec) -> dict[str, Tensor]:
    """Names, shapes and types of the weights, without memory for them where the library can do without."""
    try:
        with torch.device("meta"):
            return _make(spec).state_dict()
    except SpecError as error:
        if "meta tensor" not in str(error):
            raise
        return _make(spec).state_dict()  # it reads a number that it has just computed, as torchvision's RegNet


def preprocessing_of(spec: ExternalSpec) -> Preprocessing:
    """How the library says that images are brought to a network of timm, torchvision or open_clip.

    Raises:
        SpecError: the library is missing or has no such network.
    """
    if spec.library == "timm":
        timm = _import("timm")
        _check_name("timm", spec.name.split(".")[0], timm.list_models())
        timm_config = timm.models.get_pretrained_cfg(spec.name)
        found = timm_config.to_dict() if timm_config else {}
        side = int(found.get("input_size", (3, 224, 224))[-1])
        how = "bilinear" if found.get("interpolation") == "bilinear" else "bicubic"
        resize = int(side / found.get("crop_pct", 0.875))
        return Preprocessing(side, resize, how, found.get("mean", IMAGENET_MEAN), found.get("std", IMAGENET_STD))
    if spec.library == "torchvision":
        models = _import("torchvision.models")
        _check_name("torchvision", spec.name, models.list_models(module=models))
        weights = list(models.get_model_weights(spec.name))
        steps = weights[0].transforms()  # the first are those that papers start from
        how = "bicubic" if steps.interpolation.value == "bicubic" else "bilinear"
        return Preprocessing(steps.crop_size[0], steps.resize_size[0], how, tuple(steps.mean), tuple(steps.std))
    open_clip = load_open_clip()
    _check_name("open_clip", spec.name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(spec.name)
    found = open_clip.get_pretrained_cfg(spec.name, tags[0]) if tags else {}
    side = open_clip.get_model_config(spec.name)["vision_cfg"].get("image_size", 224)
    mean = found.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = found.get("std") or open_clip.OPENAI_DATASET_STD
    how = found.get("interpolation") or "bicubic"
    return Preprocessing(side, side, how, tuple(mean), tuple(std))


def classifier_of(spec: ExternalSpec) -> tuple[str, ...]:
    """Beginnings of the names of weights that a whole network has and its encoder does not."""
    with torch.device("meta"):
        if spec.library == "timm":
            classifier = _import("timm").create_model(spec.name, pretrained=False).pretrained_cfg.get("classifier", ())
            names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
            return tuple(f"{name}." for name in names)
    if spec.library == "torchvision":
        whole = _import("torchvision.models").get_model(spec.name, weights=None)
        aux = tuple(name for name, _ in whole.named_children() if name.lower().startswith("aux"))
        return tuple(f"{name}." for name in (_last_linear(whole), *aux))
    return ()


def _of_timm(spec: ExternalSpec) -> nn.Module:
    timm = _import("timm")
    _check_name("timm", spec.name.split(".")[0], timm.list_models())
    config = timm.models.get_pretrained_cfg(spec.name)
    is_fixed = bool(config and config.fixed_input_size)
    sized = {"img_size": spec.size_px} if is_fixed and spec.size_px else {}
    network: nn.Module = timm.create_model(spec.name, pretrained=False, num_classes=0, **sized)
    return network


def _of_torchvision(spec: ExternalSpec) -> nn.Module:
    models = _import("torchvision.models")
    _check_name("torchvision", spec.name, models.list_models(module=models))
    takes = inspect.signature(models.get_model_builder(spec.name)).parameters
    options: dict[str, Any] = {}
    if spec.name.startswith("vit_") and spec.size_px:
        options["image_size"] = spec.size_px
    if spec.name.startswith("maxvit") and spec.size_px:
        options["input_size"] = (spec.size_px, spec.size_px)
    if "init_weights" in takes or spec.name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = models.get_model(spec.name, weights=None, **options)
    network.set_submodule(_last_linear(network), nn.Identity())
    return network


def _last_linear(network: nn.Module) -> str:
    found = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not found:
        raise SpecError(f"{type(network).__name__} has no linear classifier to take off: choose another network")
    return str(found[-1])


def _of_open_clip(spec: ExternalSpec) -> nn.Module:
    open_clip = load_open_clip()
    _check_name("open_clip", spec.name, open_clip.list_models())
    config = open_clip.get_model_config(spec.name)
    config["vision_cfg"]["timm_model_pretrained"] = False
    if spec.size_px:
        config["vision_cfg"]["image_size"] = spec.size_px
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    build = open_clip.model._build_vision_tower
    tower: nn.Module = build(config["embed_dim"], vision, bool(config.get("quick_gelu", False)))
    return tower


def _of_file(spec: ExternalSpec) -> nn.Module:
    module, _, function = spec.name.partition(":")
    found = plugins.find_code(spec.sha256)
    if found is None:
        raise SpecError(
            f"this encoder is made by {function} of {module}.py, whose text has sha256 {spec.sha256[:12] or '(none)'}, "
            "and that file is not loaded: give --plugin with it, as it was"
        )
    make = getattr(found, function, None)
    if not callable(make):
        near = difflib.get_close_matches(function, [name for name in vars(found) if not name.startswith("_")], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SpecError(f"{module}.py has no function {function!r}{hint}")
    network = make()
    if not isinstance(network, nn.Module):
        raise SpecError(
            f"expected {function} of {module}.py to return a torch.nn.Module, found {type(network).__name__}"
        )
    return network.float()


@final
class _Pooled(nn.Module):
    """A model of transformers, up to its one row of features for each image."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        """Images to the projected or pooled output, else the first token or the mean over places."""
        found: Any = self.model(pixel_values=images)
        for name in ("image_embeds", "pooler_output"):
            if (pooled := getattr(found, name, None)) is not None:
                return pooled
        hidden = found.last_hidden_state
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))


def _of_transformers(spec: ExternalSpec) -> nn.Module:
    kind, config = _config_of(spec)
    model = kind._from_config(config) if hasattr(kind, "_from_config") else kind.from_config(config)
    return _without_pooler(model) if not json.loads(spec.config).get("has_pooler", True) else _Pooled(model)


def load_transformers(spec: ExternalSpec, folder: str) -> tuple[nn.Module, bool]:
    """The network in ``folder`` with its weights, and whether they have a pooler's; safetensors alone, nothing is run.

    Raises:
        SpecError: transformers is missing, or cannot read it.
        CheckpointError: weights are missing, or of other shapes.
    """
    kind, config = _config_of(spec)
    _import("transformers").logging.set_verbosity_error()  # it prints a table of what is not wanted
    try:
        model, found = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as error:  # of a library that says what does not fit in all sorts of ways
        raise SpecError(f"transformers cannot read {folder}: {reason_of(error)}") from error
    missing = sorted(found["missing_keys"])
    if lost := [name for name in missing if "pooler" not in name]:
        raise CheckpointError(
            f"{folder}: the weights are of another network: missing {', '.join(lost[:3])} ({len(lost)})"
        )
    return (_without_pooler(model), False) if missing else (_Pooled(model), True)


def _without_pooler(model: Any) -> nn.Module:
    model.pooler = None  # a classifier reads the first token itself
    return _Pooled(model)


def _config_of(spec: ExternalSpec) -> tuple[Any, Any]:
    """The class of the network, of transformers, and its configuration."""
    transformers = _import("transformers")
    values = json.loads(spec.config)
    kind = values.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(transformers.CONFIG_MAPPING), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SpecError(f"transformers has no model_type {kind!r:.80}{hint}")
    known = {name: one for name, one in values.items() if name not in ("auto_map", "has_pooler")}
    for name, number in _numbers(known):
        if number > (_MAX_LAYERS if "layer" in name or "depth" in name else _MAX_DIM):
            raise SpecError(
                f"config.json: {name} of {number:,} would make no network that can be used: restore the file"
            )
    config = transformers.CONFIG_MAPPING[kind].from_dict(known)
    if kind == "clip":
        return transformers.CLIPVisionModelWithProjection, config.vision_config
    return transformers.AutoModel, config


def reason_of(error: Exception) -> str:
    """The first line of what another library says is wrong."""
    text = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return to_printable_line(text if isinstance(error, SpecError) else f"{type(error).__name__}: {text}")[:300]


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a configuration, with the name it stands under."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, str(key))
    elif isinstance(values, list):
        for value in values:
            yield from _numbers(value, name)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield name, values


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        wanted = "transformers" if package == "transformers" else "'ssl-backdoor[vision]'"
        raise SpecError(
            f"this encoder needs {package}, but it cannot be imported ({error}); run: pip install {wanted}"
        ) from error


def _check_name(library: str, name: str, known: Collection[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise SpecError(f"{library} has no network {name!r:.80}; did you mean {' or '.join(near) or 'another library'}?")


def _reset(network: nn.Module) -> None:
    """Draw every parameter anew, each as its own layer does; those of no layer normal with standard deviation 0.02."""
    for part in network.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
        else:
            for parameter in part.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
