"""The page's own account of what was run: from runs and artifacts, never a recipe's words."""

from report_fakes import run_spec
from sweep_fakes import backdoor, backdoor_run

from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.report.setting import data_label, describe_setting, title_of
from ssl_backdoor.specs import (
    DatasetSpec,
    NoStickersSpec,
    OpenCLIPSpec,
    PatchStickersSpec,
    ResNetSpec,
    ScenesSourceSpec,
    TemplateCaptionsSpec,
    TrainSpec,
    ViTSpec,
    built_in,
)
from ssl_backdoor.store import Manifest
from ssl_backdoor.words import METHOD_LABELS, method_label

SUMMARY = {"classes": ["crow", "owl", "tit"], "num_train": 600, "num_test": 180, "num_stickers": 170}
VERSIONS = {"python": "3.11.7", "machine": "x86_64", "ssl-backdoor": "0.1.0", "torch": "2.15.0", "commit": "abc-dirty"}


def manifest(stage, **changes):
    fields = {"key": "0" * 64, "spec": {}, "inputs": {}, "files": {}, "summary": {}, "versions": {}, "seconds": 1.0}
    return Manifest(stage=stage, **(fields | changes))


def test_own_data_are_told_as_they_are():
    run = run_spec(target="owl")
    run = run.model_copy(
        update={"dataset": DatasetSpec(frame_px=32, stickers=PatchStickersSpec(style=GridTriggerSpec(size_px=6)))}
    )
    images = manifest("ingest", summary=SUMMARY, inputs={"source": "f00d" * 16})
    words = describe_setting([run], [], {run.dataset: images})
    assert words["data"] == (
        "the images given, 3 classes (crow, owl, tit), 600 training and 180 test images, stored at 32 px, digest "
        "f00df00df00d, 170 of the training images, of all classes, bear a patch with a pattern of its own (stickers)"
    )
    assert words["encoders"] == ("BYOL on ResNet-18, 200 epochs, SGD at rate 0.06, batches of 256, views of 224 px")
    assert words["defences"] == "CompRess on 25 % of the training images as trusted data"


def test_what_differs_between_runs_is_listed_and_facts_come_from_the_encoders():
    runs = [backdoor_run(count, seed) for count in (5, 50) for seed in (0, 1)]
    models = [
        backdoor(run, arm, 0.5, patch_frac=0.25, poison_fraction_of_dataset=run.attack.num_poisons / 5000)
        for run in runs
        for arm in ("control", "suspect")
    ]
    words = describe_setting(runs, models, {})
    assert words["attack carlini2022 backdoor"] == (
        "trigger 101 and 102, a patch of 25 % of the side, 6.2 % of the area, target class 0 and class 1, 5 and 50 "
        "added pairs, 0.1 and 1 % of the training images in number"
    )
    assert words["repeats"] == "2 trigger/target pairs, 2 seeds (0 and 1)"
    assert "defences" not in words


def test_every_kind_of_data_and_encoder_has_words():
    clip = TrainSpec.model_validate({"method": {"kind": "clip"}, "backbone": {"kind": "open_clip", "config": "RN50"}})
    kinds = (TrainSpec(method={"kind": "byol"}, backbone=ResNetSpec(depth=8, width=16)), clip)
    kinds += (TrainSpec(method={"kind": "mae"}, backbone=ViTSpec()),)
    data = DatasetSpec(source=ScenesSourceSpec(), captions=TemplateCaptionsSpec(), stickers=NoStickersSpec())
    runs = [run_spec().model_copy(update={"train": train, "dataset": data}) for train in kinds]
    words = describe_setting(runs, [], {})
    assert words["data"] == "the embedded image set, captions written from the class"
    for part in ("BYOL on ResNet-8 (16 channels)", "CLIP on RN50", "MAE on ViT (patches of 16 px, 12 blocks of 768)"):
        assert part in words["encoders"]
    assert isinstance(clip.backbone, OpenCLIPSpec)


def test_what_made_the_encoders_is_what_their_artifacts_say():
    encoders = [
        manifest("train", versions=VERSIONS, created="2026-11-30 18:00:00"),
        manifest("train", versions=VERSIONS | {"torch": "2.14.0"}, created="2026-11-30 17:00:00"),
        manifest("train", versions={"python": "3.11.7"}),  # of an older version: no date
    ]
    words = describe_setting([run_spec()], [], {}, encoders, "ab" * 32)
    assert words["made with"] == (
        "ssl-backdoor 0.1.0, commit abc-dirty, Python 3.11.7, torch 2.15.0 and 2.14.0, on x86_64"
    )
    assert words["encoders made"] == "2026-11-30 17:00:00 to 2026-11-30 18:00:00 UTC"
    assert words["the same again"] == "ssl-backdoor run report/abababababab --data PATH"
    assert "kNN, linear 1 %, linear 10 %, linear 100 %" in words["probes"]
    assert words["probes"].endswith("10 unseen triggers for each pair and seed")
    assert "encoders made" not in describe_setting([run_spec()], [], {})


def test_every_method_has_a_name_for_people():
    assert set(METHOD_LABELS) == {one.model_fields["kind"].default for one in built_in("method")}
    assert method_label("mine") == "mine"


def test_a_pages_title_says_what_was_attacked_and_on_what():
    run = run_spec()
    data = data_label(run.dataset, SUMMARY)
    assert title_of([run, run], [data, data]) == f"BYOL under saha2022 targeted: {data}"
    kinds = ("byol", "moco_v2", "simclr", "simsiam")
    runs = [run.model_copy(update={"train": TrainSpec.model_validate({"method": kind})}) for kind in kinds]
    assert title_of(runs[:2], []) == "BYOL and MoCo v2 under saha2022 targeted"
    assert title_of(runs, []) == "4 methods under saha2022 targeted"
