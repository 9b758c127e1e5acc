"""One toy idea of every family, as a user's file: what ``--plugin`` loads, and an example to copy from."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.recipes import demo
from ssl_backdoor.evaluate.metrics import Measurement
from ssl_backdoor.poison.plan import chosen_rows, label_of, plan_table, training
from ssl_backdoor.specs import (
    Attack,
    Detector,
    EvaluationSpec,
    FeatureProbe,
    Filter,
    Method,
    Metric,
    Repair,
    ReportSpec,
    RobustTraining,
    StageContext,
    Stamped,
    TamperAttack,
    TrainSpec,
    Trigger,
    TriggerSpec,
)


class TintSpec(Trigger):
    """All of the image a little brighter: a trigger without a box."""

    kind: Literal["tint"] = "tint"
    levels: int = 40

    def apply(self, images: Any, seeds: Sequence[int], frame: str, source: bytes | None = None) -> Stamped:
        return Stamped(np.minimum(images, 255 - self.levels) + np.uint8(self.levels), None)

    def unseen(self, seed: int) -> Self:
        return self.model_copy(update={"levels": 1 + seed % 20})


class FirstOnesSpec(Attack):
    """The trigger on a fixed number of the target's images."""

    kind: Literal["first_ones"] = "first_ones"
    trigger: TriggerSpec = TintSpec()
    target_class: str
    count: int = 5
    poisons_target_class: ClassVar[bool] = True

    def plan(self, samples: Any, classes: Sequence[str], seed: int) -> pa.Table:
        label = label_of(self.target_class, classes)
        candidates = training(samples, ["key", "label"], lambda labels: pc.equal(labels, label))
        chosen = chosen_rows(candidates, self.count, seed, "poison", "choose")
        return plan_table(chosen, chosen["key"], seed)

    def num_planned(self, num_of_class: Any, num_train: int) -> int:
        return min(self.count, num_of_class(self.target_class))


class BiasSpec(TamperAttack):
    """A clean encoder with one of its weights moved: an attack on no data."""

    kind: Literal["bias"] = "bias"
    trigger: TriggerSpec = TintSpec()
    target_class: str

    def tamper(self, dataset: Any, clean: Path, context: StageContext) -> dict[str, Any]:
        return _with_noise(clean, context.out, 0.01, context.seed)


class PullSpec(Method):
    """Two views are pulled together, and each dimension of the features is kept apart from 0."""

    kind: Literal["pull"] = "pull"
    spread: float = 1.0

    def build(self, train: TrainSpec, seed: int, replicas: Any = None) -> Any:
        import torch.nn.functional as F

        from ssl_backdoor.methods.base import LossOutput, SingleProcess, SSLMethod, views_of

        class Pull(SSLMethod):
            num_views = 2

            def __init__(self, backbone: Any, spread: float):
                super().__init__()
                self.backbone, self.spread = backbone, spread

            def loss(self, batch: Any) -> LossOutput:
                first, second = (self.backbone(view) for view in views_of(batch, self.num_views))
                apart = F.relu(1 - first.std(0)).mean()
                return LossOutput(1 - F.cosine_similarity(first, second).mean() + self.spread * apart, {})

            def after_step(self, progress: float) -> None:
                pass

        return Pull(SSLMethod.fresh_backbone(train, seed, replicas or SingleProcess()), self.spread)


class DarkestSpec(Filter):
    """Leaves the darkest samples out."""

    kind: Literal["darkest"] = "darkest"
    left_out_frac: float = 0.1

    def judge(self, pool: Any, encoder: Path | None, seed: int, on_progress: Any) -> Any:
        import torch

        from ssl_backdoor.detection.pool import Verdicts

        scores = -torch.cat([images.float().mean((1, 2, 3)) for images in pool.batches()])
        return Verdicts(scores, scores > scores.quantile(1 - self.left_out_frac))


class LonelySpec(Filter):
    """Leaves samples out whose features point where few others do; judged by an encoder trained on all."""

    kind: Literal["lonely"] = "lonely"
    needs_encoder: ClassVar[bool] = True

    def judge(self, pool: Any, encoder: Path | None, seed: int, on_progress: Any) -> Any:
        import torch.nn.functional as F

        from ssl_backdoor.detection.pool import Verdicts

        assert encoder is not None
        unit = F.normalize(pool.features(encoder), dim=1)
        scores = -(unit @ unit.mean(0))
        return Verdicts(scores, scores > scores.quantile(0.95))


class NoiseSpec(Repair):
    """Noise on every weight; trains nothing."""

    kind: Literal["noise"] = "noise"
    strength: float = 0.02

    def repair(self, dataset: Any, suspect: Path, context: StageContext) -> dict[str, Any]:
        return _with_noise(suspect, context.out, self.strength, context.seed)


def _with_noise(folder: Path, out: Path, strength: float, seed: int) -> dict[str, Any]:
    import torch

    from ssl_backdoor.seeds import torch_generator
    from ssl_backdoor.train.checkpoint import load_backbone, save_backbone

    backbone = load_backbone(folder)
    with torch.no_grad():
        for weight in backbone.parameters():
            noise = torch.randn(weight.shape, generator=torch_generator(seed, "noise"))
            weight.add_(noise, alpha=strength * float(weight.std(correction=0)))
    save_backbone(backbone, 1, out)
    return {}


class SlowerSpec(RobustTraining):
    """Trains with half the rate."""

    kind: Literal["slower"] = "slower"

    def train(self, spec: TrainSpec) -> TrainSpec:
        optimizer = spec.fit.optimizer.model_copy(update={"lr": spec.fit.optimizer.lr / 2})
        return spec.model_copy(update={"fit": spec.fit.model_copy(update={"optimizer": optimizer})})


class _Bright(Detector):
    def detect(self, pool: Any, encoder: Path, seed: int, on_progress: Any) -> Any:
        import torch

        from ssl_backdoor.detection.pool import Detection

        scores = torch.cat([images.float().mean((1, 2, 3)) for images in pool.batches()])
        ranks = scores.argsort(descending=True).argsort()
        return Detection(scores, (ranks + 1) / len(scores), "the pool itself", len(scores))


class BrightInputsSpec(_Bright):
    """Bright images are taken for triggered ones."""

    kind: Literal["bright_inputs"] = "bright_inputs"
    level: ClassVar[Literal["input"]] = "input"


class BrightSamplesSpec(_Bright):
    """Bright images are taken for poisoned ones."""

    kind: Literal["bright_samples"] = "bright_samples"
    level: ClassVar[Literal["sample"]] = "sample"


class SpreadSpec(Detector):
    """An encoder is suspicious by how little its features differ; it knows no null."""

    kind: Literal["spread"] = "spread"
    level: ClassVar[Literal["encoder"]] = "encoder"

    def detect(self, pool: Any, encoder: Path, seed: int, on_progress: Any) -> Any:
        from ssl_backdoor.detection.pool import Detection

        return Detection(-pool.features(encoder).std().reshape(1), None, "none", 0)


class NearestMeanSpec(FeatureProbe):
    """The class whose mean feature is nearest."""

    kind: Literal["nearest_mean"] = "nearest_mean"

    def fit(self, features: Any, labels: Any, num_classes: int, seed: int) -> Any:
        import torch

        means = torch.stack([features[labels == label].mean(0) for label in range(num_classes)])
        return lambda found: -torch.cdist(found, means)


class WorstClassSpec(Metric):
    """Accuracy of the class that is told worst."""

    kind: Literal["worst_class"] = "worst_class"

    def measure(self, predictions: pa.Table, classes: Sequence[str], target_label: int | None) -> Iterable[Measurement]:
        groups = predictions.group_by(["condition", "probe"], use_threads=False).aggregate([]).to_pylist()
        for group in groups:
            rows = predictions.filter(
                pc.and_(
                    pc.equal(predictions["condition"], group["condition"]),
                    pc.equal(predictions["probe"], group["probe"]),
                )
            )
            label, right = rows["label"].to_numpy(), rows["label"].to_numpy() == rows["predicted"].to_numpy()
            worst = min(right[label == one].mean() for one in np.unique(label))
            text = "Accuracy of the class that is told worst. No interval: the class is chosen by the same images."
            yield Measurement(
                "worst_class_accuracy", group["condition"], group["probe"], worst, len(right), None, None, text
            )


def everything(pairs: int, seeds: int) -> ReportSpec:
    """One run under the attack on data and one under that on the encoder, with every idea of this file."""
    return ReportSpec(recipe="everything", question="Do ideas of a user's own file come through?", runs=tuple(_runs()))


def _runs() -> Iterator[Any]:
    byol = demo.demo(1, 1).runs[0]
    ours = {
        "train": byol.train.model_copy(update={"method": PullSpec()}),
        "defences": (DarkestSpec(), LonelySpec(), NoiseSpec(), SlowerSpec()),
        "detectors": (BrightInputsSpec(), BrightSamplesSpec(), SpreadSpec()),
        "evaluation": EvaluationSpec(probes=("knn", "nearest_mean"), metrics=("worst_class",), label_fractions=(1.0,)),
    }
    yield byol.model_copy(update={"attack": FirstOnesSpec(target_class="cross"), **ours})
    yield byol.model_copy(update={"attack": BiasSpec(target_class="cross"), **ours, "variant": "tampered"})
