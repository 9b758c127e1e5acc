import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from ssl_backdoor import specs
from ssl_backdoor.identity import STAGE_VERSION, artifact_key, canonical, canonical_json
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import stream, sub_seed
from tests.golden.make_identity import CALLS, FILE, defaults, keys

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


def test_no_default_has_changed():
    for name, fields in GOLDEN["defaults"].items():
        assert defaults()[name].items() >= fields.items(), (
            f"a default of {name} changed: raise STAGE_VERSION of its stage, then run tests/golden/make_identity.py"
        )


def test_keys_are_those_of_before():
    assert keys() == GOLDEN["keys"], "keys changed: bump the stage's version, then run tests/golden/make_identity.py"
    assert canonical(CALLS["train"]) == GOLDEN["spelling"]


def test_every_stage_has_a_version():
    assert set(STAGE_VERSION) == set(get_args(specs.Stage))


def test_defaults_are_left_out_but_never_the_kind():
    assert canonical_json(specs.TrainSpec(method=specs.BYOLSpec())) == '{"method":{"kind":"byol"}}'
    moco, byol = specs.TrainSpec(method=specs.MoCoV2Spec()), specs.TrainSpec(method=specs.BYOLSpec())
    assert artifact_key("train", moco, {}) != artifact_key("train", byol, {})


def test_canonical_form_restores_the_spec():
    for spec in CALLS.values():
        assert type(spec).model_validate(json.loads(canonical_json(spec))) == spec


def test_a_key_depends_on_inputs_and_not_on_their_order():
    spec = CALLS["train"]
    one = artifact_key("train", spec, {"dataset": "a", "poison": "b"})
    assert one == artifact_key("train", spec, {"poison": "b", "dataset": "a"})
    assert one != artifact_key("train", spec, {"dataset": "b", "poison": "a"})


def test_specs_are_hashable_frozen_and_closed():
    spec = specs.FitSpec()
    assert hash(spec) == hash(specs.FitSpec())
    with pytest.raises(ValidationError):
        spec.epochs = 3
    with pytest.raises(ValidationError, match="epoch"):
        specs.FitSpec(epoch=3)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: GridTriggerSpec(), "size_px or size_frac"),
        (lambda: GridTriggerSpec(size_px=3, size_frac=0.1), "size_px or size_frac"),
        (lambda: GridTriggerSpec(size_px=3, test_location=(0.9, 0.1)), "low <= high"),
        (lambda: specs.FitSpec(batch_size=10, bn_groups=4), "bn_groups"),
        (lambda: specs.EvaluationSpec(label_fractions=(0.0,)), "label_fractions"),
        (
            lambda: Saha2022TargetedSpec(target_class="a", poison_fraction_of_target=1.5),
            "less than or equal to 1",
        ),
    ],
)
def test_impossible_values_are_refused(build, match):
    with pytest.raises(ValidationError, match=match):
        build()


def test_streams_are_named_and_stable():
    assert sub_seed(0, "views", 3) == 1264792217321079157
    assert sub_seed(0, "views", 3) != sub_seed(0, "views", "3")
    assert sub_seed(0, "a", "b") != sub_seed(0, "ab")
    assert stream(1, "x").integers(1 << 30) == stream(1, "x").integers(1 << 30)
    assert stream(1, "x").integers(1 << 30) != stream(2, "x").integers(1 << 30)


@pytest.mark.slow
def test_library_alone_trains_without_the_orchestrator(tmp_path: Path):
    script = f"""
import sys
for name in ("prefect", "ray", "mlflow"):
    sys.modules[name] = None
from ssl_backdoor.specs import *
from ssl_backdoor.stages import IngestStage, StageCall, TrainStage, run_stage
from ssl_backdoor.store import open_store
store = open_store({str(tmp_path)!r})
dataset = DatasetSpec(source=ScenesSourceSpec(train_per_class=8, test_per_class=2, side_px=16), frame_px=16)
images = run_stage(StageCall(IngestStage(dataset=dataset), source="scenes"), store).ref
train = TrainSpec(method=BYOLSpec(projector_hidden_dim=8, embedding_dim=4, predictor_hidden_dim=8),
    backbone=ResNetSpec(depth=8, width=4, stem="small"),
    fit=FitSpec(epochs=1, batch_size=16, views=ViewsSpec(size_px=16)))
call = StageCall(TrainStage(train=train, seed=0), {{"dataset": images}})
assert not run_stage(call, store).reused
assert run_stage(call, store).reused
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
