"""The recipe ``own`` follows the data, and short options change what they mean in every run that they fit."""

import json

import numpy as np
import pytest
from PIL import Image

from flows.estimate.counted import minutes, work_of
from flows.plan import plan, plan_and_count
from flows.recipes.own import look, possible_targets, usual_defences, usual_side, usual_training
from flows.shorthand import SHORTHANDS, split
from flows.terminal.arguments import SHORT_OPTIONS, parse, short_settings
from ssl_backdoor.data.counts import Counts
from ssl_backdoor.errors import SpecError, UserError
from ssl_backdoor.specs import ResNetSpec
from tasks.planner import Sources


def write_folder(folder, counts, side_px=24, caption=""):
    """``counts``: images by "split/class" or "class"."""
    for place, number in counts.items():
        (folder / place).mkdir(parents=True)
        for index in range(number):
            pixels = np.full((side_px, side_px + 4, 3), 10 * index % 255, np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{index:03}.png")
            if caption:
                (folder / place / f"{index:03}.txt").write_text(f"{caption} {place}")
    return str(folder)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Two classes of ten images, without a test split."""
    return write_folder(tmp_path_factory.mktemp("flat"), {"bee": 10, "ant": 10})


def of_own(data, *settings, pairs=0, seeds=0):
    return plan_and_count("own", settings=settings, has_data=True, sources=Sources(data), pairs=pairs, seeds=seeds)


def test_the_defaults_follow_the_data(flat):
    (run,), counts = (planned := of_own(flat)).report.runs, planned.counts
    assert (counts.classes, counts.num_train, counts.num_test) == (("ant", "bee"), 16, 4)
    assert (run.dataset.test_fraction, run.dataset.frame_px, run.dataset.classes) == (0.2, 24, ())
    assert (run.attack.kind, run.attack.target_class, run.dataset.stickers.kind) == ("saha2022_targeted", "ant", "none")
    assert run.train.fit.views.size_px == 24
    assert (run.train.fit.batch_size, run.train.fit.epochs) == (4, 300)
    assert run.defences == ()  # a quarter of 16 images can repair nothing
    (knn, _), fractions = run.evaluation.probes, run.evaluation.label_fractions
    assert (knn.neighbours, fractions) == (8, (1.0,))
    assert "no evidence" in planned.report.note
    assert "Changed from the recipe" not in planned.report.note


def test_pairs_take_the_classes_in_turn_and_new_triggers(flat):
    runs = of_own(flat, pairs=3, seeds=2).report.runs
    pairs = list(dict.fromkeys((run.attack.trigger.seed, run.attack.target_class) for run in runs))
    assert pairs == [(11, "ant"), (12, "bee"), (13, "ant")]
    assert {run.seed for run in runs} == {0, 1}
    asked = of_own(flat, "target=bee", pairs=3).report.runs
    assert {run.attack.target_class for run in asked} == {"bee"}


def test_a_test_split_is_used_as_it_is_and_captions_ask_for_clip(tmp_path):
    data = write_folder(tmp_path, {"train/ant": 30, "train/bee": 30, "test/ant": 4, "test/bee": 4}, 90, "a photo of")
    facts = look(Sources(data), ())
    assert (facts.counts.num_test, facts.dataset.test_fraction, facts.side_px) == (8, 0.0, 90)
    (run,) = of_own(data, "dataset.captions_required=true").report.runs
    assert (run.train.method.kind, run.attack.kind, run.dataset.captions.kind) == (
        "clip",
        "carlini2022_backdoor",
        "source",
    )
    assert (run.dataset.frame_px, run.attack.num_poisons) == (64, 1)
    (run,) = of_own(data, "method=clip").report.runs  # folders of classes: their captions are not read
    assert run.dataset.captions.kind == "templates"


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("target=bee", "attack.target_class", "bee"),
        ("attack=saha2022_untargeted", "attack.trigger.seed", 11),
        ("attack=none", "attack.kind", "none"),
        ("method=simclr", "train.method.embedding_dim", 64),
        ("method=moco_v2", "train.method.queue_size", 64),
        ("method=mae", "train.backbone.kind", "vit"),
        ("method=clip", "attack.kind", "carlini2022_backdoor"),
        ("backbone=resnet18", "train.backbone.depth", 18),
        ("backbone=resnet10-w32", "train.backbone.width", 32),
        ("image_size=32", "dataset.frame_px", 32),
        ("image_size=32", "train.fit.views.size_px", 32),
        ("image_size=128", "train.backbone.stem", "imagenet"),
        ("poisons=3", "attack.poison_fraction_of_target", 3.5 / 8),
        ("poison_fraction=0.25", "attack.poison_fraction_of_target", 0.25),
        ("epochs=7", "train.fit.epochs", 7),
        ("defence=compress", "defences.0.kind", "compress"),
        ("train.fit.optimizer.lr=0.5", "train.fit.optimizer.lr", 0.5),
    ],
)
def test_a_short_option_becomes_a_field(flat, setting, path, value):
    (run,) = of_own(flat, setting).report.runs
    found = run.model_dump(mode="json")
    for step in path.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    assert found == value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["target=anf"], "did you mean ant"),
        (["method=bylo"], "did you mean|such as byol"),
        (["attack=saha"], "--attack expects a kind of attack"),
        (["attack=carlini2022_backdoor"], "needs method clip"),
        (["attack=none", "target=ant"], "--target is for attacks on one class"),
        (["attack=none", "trigger=x.png"], "--trigger is for attacks with a trigger"),
        (["trigger=missing.png"], "missing.png cannot be read"),
        (["backbone=resnet34"], "--backbone expects resnet8"),
        (["image_size=big"], "--image-size expects a whole number of 8"),
        (["poisons=9"], "asks for 9, but there are 8"),
        (["poisons=-1"], "--poisons expects a whole number"),
        (["poison_fraction=2"], "a share in \\(0, 1\\]"),
        (["epochs=0"], "--epochs expects"),
        (["defence=compres"], "such as compress"),
        (["defence=cleanclip"], "needs method clip"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_in_a_sentence(flat, settings, words):
    with pytest.raises(UserError, match=words) as refused:
        of_own(flat, *settings)
    assert "\n" not in str(refused.value)


def test_data_that_own_cannot_follow_are_refused(tmp_path):
    with pytest.raises(SpecError, match="give them with --data"):
        plan("own", has_data=True)
    bare = write_folder(tmp_path, {"train": 4, "test": 2})
    with pytest.raises(SpecError, match="an attack aims at one"):
        of_own(bare)


def test_short_options_serve_other_recipes(tmp_path):
    picture = tmp_path / "mine.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(picture)
    settings = ("target=cat", "epochs=3", "image_size=32", f"trigger={picture}", "poison_fraction=0.1")
    report = plan("cifar10_byol", settings=settings, has_data=True, pairs=1)
    (run,) = report.runs  # the side variant holds the same now
    assert (run.attack.target_class, run.train.fit.epochs, run.dataset.frame_px) == ("cat", 3, 32)
    trigger = run.attack.trigger
    assert (trigger.kind, trigger.size_px, trigger.alpha, len(trigger.sha256)) == ("image", 12, "kept", 64)
    assert "target=cat" in report.note
    mixed = plan("demo", settings=["poisons=5", "poison_fraction=0.2"])
    assert {one.attack.num_poisons for one in mixed.runs if one.attack.adds_pairs} == {5}
    assert {one.attack.poison_fraction_of_target for one in mixed.runs if not one.attack.adds_pairs} == {0.2}
    with pytest.raises(SpecError, match="give --poison-fraction"):
        plan("cifar10_byol", settings=["poisons=5"], has_data=True)
    with pytest.raises(SpecError, match="--image-size is for recipes"):
        plan("saha2022_table1", "paper", settings=["image_size=64"], has_data=True)


def test_the_command_line_has_every_shorthand():
    assert list(SHORT_OPTIONS) == list(SHORTHANDS)
    line = ["run", "own", "--data", "d", "--target", "a b", "--defence", "compress", "none", "--image-size", "32"]
    options = parse(line, {"run": lambda _: 0})
    assert short_settings(options) == ["image_size=32", "target=a b", "defence=compress,none"]
    fields = json.dumps({"kind": "none"})
    assert split(["target=a=b", f"attack={fields}", "dataset.frame_px=8"]) == (
        {"target": "a=b"},
        (f"attack={fields}", "dataset.frame_px=8"),
    )


@pytest.mark.parametrize(("px", "side"), [(8, 16), (28, 24), (32, 32), (47, 40), (500, 64)])
def test_the_side_is_that_of_the_images_within_reason(px, side):
    assert usual_side(px) == side


def test_epochs_and_queues_follow_the_number_of_images():
    usual = usual_training("moco_v2", 5000, 16)
    assert (usual.fit.epochs, usual.method.queue_size) == (25, 2048)
    few, many = usual_training("byol", 500, 16), usual_training("byol", 50_000, 16)
    assert (few.fit.epochs, few.fit.batch_size, many.fit.epochs) == (200, 64, 10)
    counts = Counts(("a", "b"), (100, 100), (5, 0), 0, 0)
    (compress,) = usual_defences(False, counts, 32)
    assert (compress.fit.views.size_px, compress.fit.batch_size, compress.queue_size) == (32, 8, 64)
    assert possible_targets(counts) == ["a"]


def test_counted_minutes_grow_with_the_work(flat):
    report, counts = of_own(flat, "epochs=100")
    more = of_own(flat, "epochs=1000").report
    assert minutes(report, counts) < minutes(more, counts)
    small, large = ResNetSpec(depth=8, width=16, stem="small"), ResNetSpec(depth=18, stem="small")
    assert work_of(small, 16) == pytest.approx(3.05e6, rel=0.05)
    assert work_of(large, 32) == pytest.approx(5.5e8, rel=0.05)  # ResNet-18 on CIFAR: 0.56 billion
    assert work_of(ResNetSpec(depth=50), 224) == pytest.approx(4.1e9, rel=0.25)
