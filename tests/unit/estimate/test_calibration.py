"""What calibration measures, against the stages themselves."""

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save

from ssl_backdoor.detection.decree import DECREESpec
from ssl_backdoor.detection.duplicates import DuplicatesSpec
from ssl_backdoor.detection.local_density import LocalDensitySpec
from ssl_backdoor.detection.patchsearch import PatchSearchSpec
from ssl_backdoor.estimate import calibration as module
from ssl_backdoor.estimate.calibration import Calibrator
from ssl_backdoor.estimate.cost_model import (
    DefendKind,
    EvaluateKind,
    IngestKind,
    JudgeKind,
    LinearCost,
    PoisonKind,
    TrainKind,
)
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec, Saha2022UntargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import DatasetSpec, EvaluationSpec, FitSpec, NoAttackSpec, Resources, TargetsSpec
from ssl_backdoor.stages import DetectStage, FilterStage, TamperStage
from ssl_backdoor.tampering.badencoder import BadEncoderSpec
from ssl_backdoor.tampering.references import REFERENCE_VIEWS
from tests.support.tiny_training import BACKBONE, compress_spec, train_spec

FRAME = DatasetSpec(frame_px=12)
TRIGGER = GridTriggerSpec(size_px=4)
EVALUATION = EvaluationSpec(probes=({"kind": "knn", "neighbours": 3},))
BYOL = train_spec("byol")
SIDE_PX = 24


def picture(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = [picture(seed) for seed in range(4)]


@pytest.fixture(scope="module", autouse=True)
def _few_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_IMAGES", 90)
        yield


@pytest.fixture(scope="module")
def calibrator(tmp_path_factory):
    return Calibrator(tmp_path_factory.mktemp("scratch"), IMAGES, 3, 0.2, Resources(device="cpu"))


def test_a_linear_cost_goes_through_two_measurements():
    assert LinearCost(2.0, 0.5).at(6) == 5.0
    assert LinearCost.through(2, 3.0, 6, 5.0) == (2.0, 0.5)
    assert LinearCost.through(2, 3.0, 6, 2.0) == (2.0, 0.0)
    assert LinearCost.through(2, 1.0, 6, 9.0) == (0.0, 2.0)


def test_images_cost_time_and_room(calibrator):
    model = calibrator.cost_model(IngestKind(FRAME))
    assert model.seconds.at(100) > 0
    # Each image has three headers and padding to 512 bytes in a shard, and a row in the table.
    assert len(IMAGES[0]) + 3 * 512 < model.num_bytes.per_unit < len(IMAGES[0]) + 8 * 512


@pytest.mark.parametrize(
    "attack",
    [
        NoAttackSpec(),
        Saha2022TargetedSpec(trigger=TRIGGER, target_class=""),
        Saha2022TargetedSpec(trigger=TRIGGER, target_class="", codec="jpeg75"),
        Saha2022UntargetedSpec(trigger=TRIGGER),
        Carlini2022BackdoorSpec(trigger=TRIGGER, target_class=""),
        Carlini2022TargetedSpec(),
    ],
    ids=lambda attack: attack.kind,
)
def test_every_attack_is_measured(calibrator, attack):
    model = calibrator.cost_model(PoisonKind(attack, FRAME))
    assert model.seconds.at(100) > 0
    assert (model.num_bytes.per_unit > 0) == (attack.kind != "none")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_training_s_artifact_has_the_size_it_will_have(calibrator, is_streamed):
    model = calibrator.cost_model(TrainKind(BYOL, FRAME, is_streamed))
    assert model.seconds.per_unit > 0
    assert model.note == ""
    weights = len(save(build_backbone(BACKBONE, 1, 0).state_dict()))
    assert weights < model.num_bytes.at(1) == model.num_bytes.at(1000) < 1.5 * weights


def test_what_there_is_no_time_for_is_done_in_smaller_batches_and_said(tmp_path):
    hurried = Calibrator(tmp_path, IMAGES, 3, 1e-6, Resources(device="cpu"))
    spec = train_spec("byol", batch_size=64)
    assert hurried.cost_model(TrainKind(spec, FRAME, False)).note == "measured in batches of 16, not of 64"


def test_a_defence_is_measured_on_an_encoder_of_a_few_steps(calibrator):
    model = calibrator.cost_model(DefendKind(compress_spec(1), compress_spec(1).fit, BYOL, FRAME, False))
    assert model.seconds.per_unit > 0
    assert model.num_bytes.fixed > len(save(build_backbone(BACKBONE, 1, 0).state_dict()))


@pytest.mark.parametrize(("trigger", "targets", "conditions"), [(TRIGGER, None, 12), (None, TargetsSpec(), 1)])
def test_an_evaluation_grows_with_the_images_it_scores(calibrator, trigger, targets, conditions):
    kind = EvaluateKind(EVALUATION, trigger, targets, BYOL, FRAME)
    assert kind.num_scored(10, 4) == 10 + conditions * 4
    model = calibrator.cost_model(kind)
    assert model.seconds.at(10_000) > 0
    assert model.num_bytes.at(10_000) > model.num_bytes.at(1) > 0


def test_a_probe_that_trains_encoders_is_left_out_and_named(calibrator, monkeypatch):
    monkeypatch.setattr("ssl_backdoor.evaluate.fine_tune.fine_tuned_readings", None)  # would end in an error
    kind = EvaluateKind(EvaluationSpec(probes=(*EVALUATION.probes, "fine_tune")), TRIGGER, None, BYOL, FRAME)
    assert calibrator.cost_model(kind).note == "without the probe fine_tune, which trains encoders"


def test_training_images_are_scored_only_where_a_probe_learns():
    zero_shot = EvaluationSpec(probes=("zero_shot",))
    assert EvaluateKind(zero_shot, None, None, train_spec("clip"), FRAME).num_scored(10, 4) == 4


@pytest.mark.parametrize("spec", [LocalDensitySpec(k=64), PatchSearchSpec(num_places=1, num_flips=4), DuplicatesSpec()])
def test_a_filter_is_fitted_to_few_images_and_costs_what_its_work_is(calibrator, spec):
    kind = JudgeKind(FilterStage(defence=spec, seed=0), "model" if spec.needs_encoder else "", BYOL, FRAME)
    assert kind.fitted_to(30).defence.budget == spec.budget
    assert kind.work(5000) == spec.work(5000) >= 5000
    model = calibrator.cost_model(kind)
    assert model.seconds.at(kind.work(1000)) >= model.seconds.at(0) >= 0
    assert model.seconds.at(kind.work(1000)) > 0


@pytest.mark.parametrize("epochs", [2, 200])
def test_tampering_is_measured_on_an_encoder_that_knows_nothing(calibrator, epochs):
    fit = FitSpec(epochs=epochs, batch_size=16, views=REFERENCE_VIEWS)
    attack = BadEncoderSpec(target_class="of no calibration image", reference_views=2, fit=fit)
    model = calibrator.cost_model(JudgeKind(TamperStage(attack=attack, seed=0), "model", BYOL, FRAME))
    assert model.seconds.at(1000) > 0
    assert attack.reduced[1] == epochs


def test_a_detector_of_encoders_is_measured_by_a_part_of_its_work(calibrator):
    spec = DECREESpec(num_starts=3, steps=400, batch_size=4)
    assert spec.reduced[1] == 60
    model = calibrator.cost_model(JudgeKind(DetectStage(detector=spec, seed=0), "model", BYOL, FRAME))
    assert model.seconds.at(1000) > 0
