"""Writes identity.json: the defaults of every spec and one key per stage. Run it only with a sentence in the commit.

`python -m tests.golden.make_identity`. A changed default or key means that old artifacts would be taken for new
ones: raise the stage's STAGE_VERSION in the same commit.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ssl_backdoor import specs, stages
from ssl_backdoor.defences.compress import CompressSpec
from ssl_backdoor.identity import STAGE_VERSION, artifact_key, canonical
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs.family import BUILT_IN

FILE = Path(__file__).with_name("identity.json")
GRID = GridTriggerSpec(seed=3, cells=4, style="smooth", size_frac=0.3, opacity=0.5, train_location=(0.0, 0.5))
FIT = specs.FitSpec(
    epochs=3,
    batch_size=64,
    views=specs.ViewsSpec(size_px=16, crop_scale=(0.5, 0.9), interpolation="bicubic", blur_sigma_px=(0.2, 1.0)),
    optimizer=specs.AdamSpec(lr=0.001, weight_decay=0.0),
    schedule=specs.MilestonesSpec(milestones=(1, 2), factor=0.5, warmup_steps=7),
    bn_groups=2,
    precision="bfloat16",
)
CALLS: dict[str, specs.Spec] = {
    "ingest": stages.IngestStage(
        dataset=specs.DatasetSpec(
            source=specs.ScenesSourceSpec(num_classes=3, seed=4),
            classes=("disc", "ring"),
            frame_px=16,
            keep_fraction=0.5,
        )
    ),
    "poison": stages.PoisonStage(
        attack=Saha2022TargetedSpec(trigger=GRID, target_class="ring", poison_fraction_of_target=0.2), seed=5
    ),
    "train": stages.TrainStage(train=specs.TrainSpec(method=specs.MoCoV2Spec(queue_size=128), fit=FIT), seed=6),
    "defend": stages.DefendStage(defence=CompressSpec(trusted_fraction=0.1, num_queues=1, fit=FIT), seed=7),
    "evaluate": stages.EvaluateStage(
        evaluation=specs.EvaluationSpec(probes=("knn",), label_fractions=(0.5,)),
        trigger=GRID,
        target_class="ring",
        seed=8,
    ),
}


def defaults() -> dict[str, dict[str, Any]]:
    """Every spec's fields that have a default."""
    classes = {
        cls
        for module in (specs, stages)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, specs.Spec) and not inspect.isabstract(cls)
    } | {cls for family in BUILT_IN for cls in specs.built_in(family)}
    return {
        cls.__name__: {name: _default(field) for name, field in cls.model_fields.items() if not field.is_required()}
        for cls in sorted(classes, key=lambda cls: cls.__name__)
    }


def _default(field: FieldInfo) -> Any:
    return to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))


def keys() -> dict[str, str]:
    """One key a stage, every kind of field set."""
    return {
        f"{stage}@{STAGE_VERSION[stage]}": artifact_key(stage, spec, {"dataset": "0" * 64})
        for stage, spec in CALLS.items()
    }


def main() -> None:
    """Write the file."""
    document = {"defaults": defaults(), "keys": keys(), "spelling": canonical(CALLS["train"])}
    FILE.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
