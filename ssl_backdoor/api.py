"""What a notebook needs: each stage as one function, encoders as modules, triggers on arrays.

A stage's function returns an ``ArtifactRef``: the result lies in the store, and the same call finds it there. Specs may
be given as such, as mappings with a ``kind``, or as the bare kind where all else has defaults. Every error is an
``ssl_backdoor.errors.SslBackdoorError`` of one sentence; what the caller can fix is a ``UserError``.

Shapes: B images, H x W px, D features. NumPy's images have their channels last, torch's first.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from ssl_backdoor.data.in_memory import Samples, write_samples
from ssl_backdoor.data.stored import open_dataset, open_overlay
from ssl_backdoor.errors import CheckpointError, SpecError
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import (
    Attack,
    AttackSpec,
    DatasetSpec,
    Defence,
    DefenceSpec,
    Detector,
    DetectorSpec,
    EvaluationSpec,
    FilesSourceSpec,
    Resources,
    TrainSpec,
    Trigger,
    TriggerSpec,
)
from ssl_backdoor.specs.trigger import Frame
from ssl_backdoor.stages import (
    DefendStage,
    DetectStage,
    EvaluateStage,
    IngestStage,
    PoisonStage,
    StageCall,
    TrainStage,
    run_stage,
)
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store
from ssl_backdoor.words import explain

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Images",
    "detect",
    "evaluate",
    "features",
    "ingest",
    "load_encoder",
    "load_images",
    "measurements",
    "open_store",
    "poison",
    "repair",
    "stamp",
    "train",
]
Described = str | Mapping[str, Any]
"""A spec by its kind, or by its fields with a ``kind`` among them."""
ImagesLike = TypeVar("ImagesLike", bound="npt.NDArray[Any] | Tensor")


class Images(NamedTuple):
    """A split in memory; row i of each field is one image."""

    images: npt.NDArray[np.uint8]
    """uint8 (B, H, W, 3)."""
    labels: npt.NDArray[np.int64]
    """int64 (B,): index into ``classes``, -1 for none."""
    keys: tuple[str, ...]
    """Names of the images in the dataset."""
    classes: tuple[str, ...]
    """Names of the labels."""


def ingest(
    data: str | os.PathLike[str] | Samples | None = None,
    *,
    store: ArtifactStore,
    dataset: DatasetSpec | Described | None = None,
    test: str | os.PathLike[str] | Samples | None = None,
    class_names: Sequence[str] | None = None,
) -> ArtifactRef:
    """Read images into the store.

    Args:
        data: a path (folder, archive, shards or table); or samples: any iterable of (image, label) or (image, label,
            caption), a torch Dataset, a Hugging Face dataset (of a DatasetDict "train" and "test", else "validation"),
            or mappings with the fields image, label and caption. An image is uint8 in 0 to 255 or float in [0, 1] of
            shape (H, W) or (H, W, 3), torch's (3, H, W), a PIL image, or the bytes of a file; a label is a class's
            name, its number, or None. None where ``dataset`` draws its own images.
        store: where to.
        dataset: frame, classes, share held out for tests, ...; the default keeps everything as it is.
        test: where test images come from, if not from ``data``: a path where that is one, else samples.
        class_names: of samples whose labels are numbers. By default the dataset's own, else the numbers.

    Returns:
        The dataset. Its key follows from the content of samples (from names, sizes and times of a folder's files), so
        that other images are another artifact. Samples are taken one by one: memory holds some dozens of them, the
        folder for temporary files all.

    Raises:
        DataError: the data cannot be used, or a sample is none of these.
        SpecError: data and spec do not fit.
    """
    spec = DatasetSpec() if dataset is None else _read(DatasetSpec, dataset)
    if data is None or isinstance(data, str | os.PathLike):
        if test is not None and not isinstance(test, str | os.PathLike):
            raise SpecError(f"data are a path, so test is to be one, found {type(test).__name__}")
        if test is not None:
            spec = spec.model_copy(update={"test_source": FilesSourceSpec()})
        path, test_path = (None if one is None else os.fspath(one) for one in (data, test))
        call = StageCall(IngestStage(dataset=spec), data=path, test_data=test_path, title="ingest")
        return run_stage(call, store).ref
    if isinstance(test, str | os.PathLike):
        raise SpecError("data are samples, so test is to be samples, found a path")
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-samples-") as folder:
        digest = write_samples(data, test, class_names, Path(folder))
        return run_stage(StageCall(IngestStage(dataset=spec), source=digest, data=folder, title="ingest"), store).ref


def poison(dataset: ArtifactRef, attack: Attack | Described, *, store: ArtifactStore, seed: int = 0) -> ArtifactRef:
    """Plan an attack on the data, and make the poisoned images.

    Args:
        dataset: what ``ingest`` returned; it stays as it is.
        attack: such as ``{"kind": "saha2022_targeted", "target_class": "cat"}``.
        store: where ``dataset`` lies.
        seed: of every choice, 0 or more.

    Returns:
        The poison: a plan, and the few images that are replaced or added.

    Raises:
        SpecError: no such class, more poisons than images, or a trigger larger than an image.
        DataError: a picture of a trigger that cannot be read.
    """
    spec = PoisonStage(attack=_read(AttackSpec, attack), seed=seed)
    return run_stage(StageCall(spec, {"dataset": dataset}, title="poison"), store).ref


def train(
    dataset: ArtifactRef,
    train: TrainSpec | Mapping[str, Any],
    *,
    store: ArtifactStore,
    poison: ArtifactRef | None = None,
    seed: int = 0,
    resources: Resources | None = None,
) -> ArtifactRef:
    """Pre-train an encoder, on clean data or with ``poison``.

    Args:
        dataset: the images.
        train: method, backbone and optimisation.
        store: where ``dataset`` lies.
        poison: what ``poison`` returned; None trains on clean data.
        seed: of the weights, the order and the views, 0 or more.
        resources: how it runs; changes no result.

    Returns:
        The encoder. A training that was interrupted resumes from its last checkpoint.

    Raises:
        SpecError: data and training do not fit, such as a batch larger than the set.
        TrainingError: the loss is no number.
    """
    inputs = {"dataset": dataset} | ({"poison": poison} if poison is not None else {})
    call = StageCall(TrainStage(train=_read(TrainSpec, train), seed=seed), inputs, title="train")
    return run_stage(call, store, resources).ref


def repair(
    encoder: ArtifactRef,
    defence: Defence | Described,
    *,
    dataset: ArtifactRef,
    store: ArtifactStore,
    seed: int = 0,
    resources: Resources | None = None,
) -> ArtifactRef:
    """Defend a finished encoder, with a trusted part of the clean data.

    Args:
        encoder: what ``train`` returned; it stays as it is.
        defence: one of the repairs, such as ``"compress"``.
        dataset: the clean images, of which the defence takes its share.
        store: where both lie.
        seed: of the choice of the share and of the training, 0 or more.
        resources: how it runs; changes no result.

    Returns:
        The repaired encoder.

    Raises:
        SpecError: too few trusted images, an encoder of a kind that it cannot repair, or a defence that repairs none.
    """
    spec = DefendStage(defence=_read(DefenceSpec, defence), seed=seed)
    return run_stage(StageCall(spec, {"dataset": dataset, "suspect": encoder}, title="repair"), store, resources).ref


def detect(
    encoder: ArtifactRef,
    detector: Detector | Described,
    *,
    dataset: ArtifactRef,
    store: ArtifactStore,
    poison: ArtifactRef | None = None,
    trigger: Trigger | Described | None = None,
    seed: int = 0,
) -> ArtifactRef:
    """Ask a detector whether an encoder, its training samples or its inputs are poisoned.

    Args:
        encoder: what ``train`` or ``repair`` returned.
        detector: a kind, or its fields.
        dataset: the images that it was trained on.
        store: where both lie.
        poison: what else it was trained on, so that the detector can be scored against the truth.
        trigger: of detectors of inputs: what is put on half of them.
        seed: of every choice, 0 or more.

    Returns:
        Scores, p-values and how well they tell; see ``measurements``.

    Raises:
        SpecError: a detector that needs what was not given.
    """
    named = None if trigger is None else _read(TriggerSpec, trigger).with_digest()
    spec = DetectStage(detector=_read(DetectorSpec, detector), trigger=named, seed=seed)
    inputs = {"dataset": dataset, "model": encoder}
    if spec.detector.level == "sample" and poison is not None:
        inputs["poison"] = poison
    if named is not None and named.is_from_file and poison is not None:
        inputs["trigger"] = poison  # it holds a copy of the picture
    return run_stage(StageCall(spec, inputs, title="detect"), store).ref


def evaluate(
    encoder: ArtifactRef,
    *,
    dataset: ArtifactRef,
    store: ArtifactStore,
    evaluation: EvaluationSpec | Mapping[str, Any] | None = None,
    trigger: Trigger | Described | None = None,
    target_class: str = "",
    poison: ArtifactRef | None = None,
    seed: int = 0,
) -> ArtifactRef:
    """Probe a frozen encoder on clean test images and, with a trigger, on triggered ones.

    Args:
        encoder: what ``train`` or ``repair`` returned.
        dataset: labelled images; probes learn on its training split.
        store: where both lie.
        evaluation: probes, shares of labels, number of unseen triggers.
        trigger: put on each test image; with it unseen ones of its style are tried.
        target_class: the class that false positives are counted of; empty for none.
        poison: of a trigger that is a picture: the poison that holds a copy of it.
        seed: of the labelled subsets and the triggers' places, 0 or more.

    Returns:
        Predictions of every image and probe, and the measurements: see ``measurements``.

    Raises:
        SpecError: no such class, a trigger larger than the images, no test images.
    """
    named = None if trigger is None else _read(TriggerSpec, trigger).with_digest()
    spec = EvaluateStage(
        evaluation=EvaluationSpec() if evaluation is None else _read(EvaluationSpec, evaluation),
        trigger=named,
        target_class=target_class,
        seed=seed,
    )
    inputs = {"dataset": dataset, "model": encoder}
    if named is not None and named.is_from_file and poison is not None:
        inputs["poison"] = poison
    return run_stage(StageCall(spec, inputs, title="evaluate"), store).ref


def measurements(ref: ArtifactRef, *, store: ArtifactStore) -> dict[str, float]:
    """What ``evaluate`` measured: "name/condition/probe" -> value, such as "accuracy/clean/knn".

    Accuracies and success rates are shares in [0, 1], false positives are counts of test images.

    Raises:
        SpecError: the artifact holds none.
        StoreError: it is not there.
    """
    found = store.manifest(ref).summary.get("measurements")
    if not isinstance(found, Mapping):
        raise SpecError(
            f"expected what evaluate returned, found {ref.stage}/{ref.key[:12]}, which holds no measurements"
        )
    return {str(name): float(value) for name, value in found.items()}


def load_images(
    dataset: ArtifactRef, *, store: ArtifactStore, split: str = "train", poison: ArtifactRef | None = None
) -> Images:
    """A split of a dataset, decoded; with ``poison`` as a training on it sees them.

    Args:
        dataset: what ``ingest`` returned.
        store: where it lies.
        split: train or test.
        poison: its images take the place of those that they replace; those that it adds come last.

    Raises:
        DataError: no image in that split, or images of several sizes (set ``frame_px`` of the dataset).
    """
    from ssl_backdoor.data.resident import load_resident

    opened = open_dataset(store, dataset)
    held = load_resident(opened, split, None if poison is None else open_overlay(store, poison))
    return Images(held.images.permute(0, 2, 3, 1).numpy(), held.labels.numpy(), held.keys, opened.classes)


def stamp(images: ImagesLike, trigger: Trigger | Described, *, seed: int = 0, frame: Frame = "test") -> ImagesLike:
    """Put a trigger on one image or on each of a batch.

    Args:
        images: NumPy (H, W, 3) or (B, H, W, 3); or torch (3, H, W) or (B, 3, H, W), on any device. uint8 in 0 to 255,
            or float in [0, 1], which is rounded to 256 levels. They are left as they are.
        trigger: such as ``{"kind": "grid", "size_px": 6}``.
        seed: of the places; image i of a batch draws its own.
        frame: "test" draws places as for test images, "train" as for poisons.

    Returns:
        Of the type, shape, device and range of ``images``.

    Raises:
        SpecError: the trigger is larger than the image; images of another shape, type or range.
        DataError: a picture of a trigger that cannot be read.
    """
    spec = _read(TriggerSpec, trigger)
    batch, is_one = _batch_of(images)
    seeds = [sub_seed(seed, "stamp", index) for index in range(len(batch))]
    source = spec.read()
    if isinstance(batch, np.ndarray):
        is_float = np.issubdtype(batch.dtype, np.floating)
        levels = np.rint(batch * 255).astype(np.uint8) if is_float else batch
        stamped: Any = spec.apply(levels, seeds, frame, source).images
        stamped = (stamped / 255).astype(batch.dtype) if is_float else stamped
    else:
        from ssl_backdoor.poison.triggers.tensors import apply_to_tensor

        stamped = apply_to_tensor(spec, batch, seeds, frame, source)
    found: ImagesLike = stamped[0] if is_one else stamped
    return found


def load_encoder(
    encoder: ArtifactRef | str | os.PathLike[str], *, store: ArtifactStore | None = None, device: str = "cpu"
) -> "nn.Module":
    """An encoder as a torch module: frozen, in eval mode.

    Args:
        encoder: what ``train`` or ``repair`` returned; its name "train/KEY", of which a unique beginning of the key is
            enough; a folder with ``backbone.safetensors`` and ``backbone.json``; or one that others made:
            "LIBRARY/NAME:FILE" of timm, torchvision or open_clip, a Hugging Face folder or "FILE.py:FUNCTION".
        store: where an artifact lies.
        device: such as "cuda".

    Returns:
        A module from plain images (B, 3, H, W), uint8 in 0 to 255 or float in [0, 1], to float32 features (B, D), not
        normalised. One that others made brings images to its own size; others take them as they are.

    Raises:
        CheckpointError: its files cannot be read, could run code, or do not fit the network.
        SpecError: an artifact without a store, no such artifact, or several; it names no encoder.
    """
    from ssl_backdoor.encoders import load_encoder as load
    from ssl_backdoor.evaluate.features import OfPlainImages
    from ssl_backdoor.train.checkpoint import load_backbone

    if not isinstance(encoder, ArtifactRef) and (Path(encoder) / "backbone.json").is_file():
        return OfPlainImages(load_backbone(Path(encoder))).eval().to(device)
    found = load(f"{encoder.stage}/{encoder.key}" if isinstance(encoder, ArtifactRef) else os.fspath(encoder), store)
    if found.ref is not None and store is not None and store.manifest(found.ref).spec.get("kind") != "adopted":
        return OfPlainImages(found.backbone).eval().to(device)  # as evaluate sees it, which resizes nothing of itself
    return found.to(device)


def features(encoder: "nn.Module", images: ImagesLike, *, batch_size: int = 256) -> ImagesLike:
    """What an encoder makes of images.

    Args:
        encoder: what ``load_encoder`` returned, on any device; or any module from such images to (B, D).
        images: as of ``stamp``.
        batch_size: images that pass at once.

    Returns:
        float32 (B, D), not normalised, on the CPU: NumPy for NumPy, torch for torch. Of one image (1, D).

    Raises:
        SpecError: images of another shape, type or range.
        CheckpointError: a feature is not finite, or they are not of this shape.
    """
    import torch

    batch, _ = _batch_of(images)
    is_numpy = isinstance(batch, np.ndarray)
    tensor = torch.from_numpy(np.moveaxis(batch, 3, 1).copy()) if is_numpy else batch
    device = next((one.device for one in encoder.parameters()), tensor.device)
    with torch.inference_mode():
        rows = torch.cat([encoder(part.to(device)).float().cpu() for part in tensor.split(batch_size)])
    if rows.ndim != 2 or len(rows) != len(tensor) or not rows.isfinite().all():
        raise CheckpointError(
            f"expected finite features of shape ({len(tensor)}, D) from the encoder, found shape {tuple(rows.shape)}, "
            f"{int((~rows.isfinite()).sum())} of them not finite"
        )
    found: Any = rows.numpy() if is_numpy else rows.clone()
    values: ImagesLike = found
    return values


# ------------------------------------------------------------------------------------------------ what was given


def _read(kind: Any, value: Any) -> Any:
    """``value`` as the spec ``kind``, or one sentence on what is wrong with it."""
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{where + ': ' if where else ''}{explain(first)}") from error


def _batch_of(images: Any) -> tuple[Any, bool]:
    """The images as a batch, and whether they were one.

    Raises:
        SpecError: another shape, type or range.
    """
    is_torch = hasattr(images, "detach")
    channels, example = (-3, "torch (3, H, W) or (B, 3, H, W)") if is_torch else (-1, "NumPy (H, W, 3) or (B, H, W, 3)")
    if not is_torch and not isinstance(images, np.ndarray):
        raise SpecError(f"expected images as a NumPy array or a torch tensor, found {type(images).__name__}")
    if images.ndim not in (3, 4) or images.shape[channels] != 3 or 0 in images.shape:
        raise SpecError(f"expected images of shape {example}, found {tuple(images.shape)}")
    is_float = images.is_floating_point() if is_torch else np.issubdtype(images.dtype, np.floating)
    if not is_float and str(images.dtype).removeprefix("torch.") != "uint8":
        raise SpecError(f"expected images of type uint8, or float in [0, 1], found {images.dtype}")
    if is_float and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise SpecError(
            f"expected float images in [0, 1], found {float(images.min()):g} to {float(images.max()):g}: undo their "
            "normalisation, or divide by 255"
        )
    return (images[None], True) if images.ndim == 3 else (images, False)
