"""What the dress rehearsal measures, against the stages themselves."""

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save

from ssl_backdoor import rehearsal as module
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.rehearsal import Defending, Evaluating, Ingesting, Line, Poisoning, Rehearsal, Training
from ssl_backdoor.specs import (
    Carlini2022BackdoorSpec,
    Carlini2022TargetedSpec,
    DatasetSpec,
    EvaluationSpec,
    GridTriggerSpec,
    NoAttackSpec,
    Resources,
    Saha2022TargetedSpec,
    Saha2022UntargetedSpec,
    TargetsSpec,
)
from tests.support.tiny_training import BACKBONE, compress_spec, train_spec

FRAME = DatasetSpec(frame_px=12)
TRIGGER = GridTriggerSpec(size_px=4)
EVALUATION = EvaluationSpec(probes=("knn",), knn_neighbours=3)
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
        patch.setattr(module, "MOST_IMAGES", 90)
        yield


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    return Rehearsal(tmp_path_factory.mktemp("scratch"), IMAGES, 3, 0.2, Resources(device="cpu"))


def test_a_line_has_a_beginning_and_a_slope():
    assert Line(2.0, 0.5).at(6) == 5.0


def test_images_cost_time_and_room(rehearsal):
    pace = rehearsal.pace(Ingesting(FRAME))
    assert pace.seconds.at(100) > 0
    # Half of the units, which are images of either split, lie here, each with three headers and padding to 512 bytes.
    assert len(IMAGES[0]) + 3 * 512 < 2 * pace.files["shards/train-000000.tar"].each < len(IMAGES[0]) + 7 * 512


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
def test_every_attack_is_rehearsed(rehearsal, attack):
    pace = rehearsal.pace(Poisoning(attack, FRAME))
    assert pace.seconds.at(100) > 0
    overlays = [line.each for name, line in pace.files.items() if name.startswith("overlay/")]
    assert [each > 0 for each in overlays] == [True] * (attack.kind != "none")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_training_s_artifact_has_the_size_it_will_have(rehearsal, is_streamed):
    pace = rehearsal.pace(Training(BYOL, FRAME, is_streamed))
    assert pace.seconds.each > 0
    assert pace.note == ""
    weights = len(save(build_backbone(BACKBONE, 1, 0).state_dict()))
    assert pace.files["backbone.safetensors"] == Line(weights, 0.0)
    assert pace.files["manifest.json"].once > 0


def test_what_there_is_no_time_for_is_done_in_smaller_batches_and_said(tmp_path):
    hurried = Rehearsal(tmp_path, IMAGES, 3, 1e-6, Resources(device="cpu"))
    spec = train_spec("byol", batch_size=64)
    assert hurried.pace(Training(spec, FRAME, False)).note == "measured in batches of 16, not of 64"


def test_a_defence_is_rehearsed_on_an_encoder_hardly_trained(rehearsal):
    pace = rehearsal.pace(Defending(compress_spec(1), BYOL, FRAME, False))
    assert pace.seconds.each > 0
    assert {"backbone.safetensors", "trusted.parquet"} < set(pace.files)


@pytest.mark.parametrize(("trigger", "targets", "conditions"), [(TRIGGER, None, 3), (None, TargetsSpec(), 1)])
def test_an_evaluation_grows_with_the_images_it_scores(rehearsal, trigger, targets, conditions):
    kind = Evaluating(EVALUATION, trigger, targets, BYOL, FRAME)
    assert kind.num_scored(10, 4) == 10 + conditions * 4
    pace = rehearsal.pace(kind)
    assert pace.seconds.at(10_000) > 0
    assert pace.files["predictions.parquet"].once > 0
    assert ("targets.parquet" in pace.files) == (targets is not None)


def test_training_images_are_scored_only_where_a_probe_learns():
    zero_shot = EvaluationSpec(probes=("zero_shot",))
    assert Evaluating(zero_shot, None, None, train_spec("clip"), FRAME).num_scored(10, 4) == 4
