"""What recipes need, counted by hand."""

from collections import Counter

import numpy as np
import pytest

from flows.estimate.workload import Workload
from flows.pipeline import plan_stages
from flows.plan import plan
from ssl_backdoor.data.images import encode_png
from ssl_backdoor.errors import SpecError
from ssl_backdoor.estimate.cost_model import DefendKind, EvaluateKind, TrainKind
from ssl_backdoor.estimate.preview import preview_source, synthetic_preview
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.specs import ScenesSourceSpec
from ssl_backdoor.store import LocalStore

CIFAR_BYOL = {"recipe": "cifar10_byol", "pairs": 2}
TABLE1 = {"recipe": "saha2022_table1", "size": "mini", "seeds": 1, "methods": "byol,simclr"}
BACKDOOR = {"recipe": "carlini2022_fig2_backdoor", "size": "mini", "seeds": 1}


@pytest.fixture
def workload(tmp_path):
    def of_recipe(num_train=5000, num_test=5000, **asked):
        report = plan(**asked, has_data=asked["recipe"] != "demo")
        calls = plan_stages(report, LocalStore(tmp_path / "store"), lambda *_: "digest")
        return Workload(calls, lambda _, dataset, __: preview_dataset(dataset, num_train, num_test))

    def preview_dataset(dataset, *num_images):
        return (
            preview_source(dataset, None)
            if isinstance(dataset.source, ScenesSourceSpec)
            else synthetic_preview(dataset, *num_images)
        )

    return of_recipe


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        # One control for two pairs and two fractions; evaluated once a pair, as its distilled copy is.
        (CIFAR_BYOL, {"ingest": 1, "poison": 4, "train": 5, "defend": 5, "evaluate": 12, "report": 1}),
        # Of each method a control and a suspect a pair.
        (TABLE1, {"ingest": 1, "poison": 2, "train": 6, "evaluate": 8, "report": 1}),
        # Four counts, the defended one among them; two defences of a suspect and of the control; both on plain data.
        (BACKDOOR, {"ingest": 2, "poison": 5, "train": 7, "defend": 4, "evaluate": 11, "report": 1}),
        ({"recipe": "demo"}, {"ingest": 1, "poison": 3, "train": 5, "defend": 4, "evaluate": 10, "report": 1}),
    ],
)
def test_shared_stages_count_once(workload, asked, expected):
    assert Counter(ref.stage for ref in workload(**asked).stages) == expected


def units(found, stage):
    return {work.units for ref, work in found.stages.items() if ref.stage == stage}


def test_work_is_what_the_spec_says(workload):
    found = workload(**CIFAR_BYOL)
    assert units(found, "ingest") == {10_000}
    assert units(found, "poison") == {1000, 500}  # all of one of five classes, or half of it
    assert units(found, "train") == {20 * (5000 // 64)}
    assert units(found, "defend") == {80 * (1250 // 64)}  # a trusted quarter
    assert units(found, "evaluate") == {5000 + 12 * 5000}  # clean, triggered, ten unseen triggers
    assert units(found, "report") == {4 * 4}  # runs and arms


def test_added_pairs_are_trained_on(workload):
    assert units(workload(num_train=128 * 40 - 5, **BACKDOOR), "train") == {25 * 39, 25 * 40}


def test_stages_that_differ_in_pair_seed_or_amount_alone_are_of_one_kind(workload):
    for asked, training, defending, evaluating in ((CIFAR_BYOL, 1, 1, 1), (TABLE1, 2, 0, 1), (BACKDOOR, 1, 2, 1)):
        kinds = Counter(type(kind) for kind in {work.kind for work in workload(**asked).stages.values()})
        assert (kinds[TrainKind], kinds[DefendKind], kinds[EvaluateKind]) == (training, defending, evaluating)
    every = {work.kind for work in workload(recipe="saha2022_table1", size="mini").stages.values()}
    kinds = Counter(type(kind) for kind in every)
    assert (kinds[TrainKind], kinds[EvaluateKind]) == (8, 2)  # eight methods, two architectures


def test_a_set_too_large_to_be_held_is_streamed(workload):
    paper = {"recipe": "saha2022_table1", "size": "paper", "methods": "moco_v2"}
    for num_train, expected in ((40_000, False), (126_689, True)):  # 256 px: 8 GiB hold 43,690
        kinds = {work.kind for work in workload(num_train, 5000, **paper).stages.values()}
        assert {kind.is_streamed for kind in kinds if isinstance(kind, TrainKind)} == {expected}


def test_an_image_trigger_counts_as_a_grid_of_its_size(workload, tmp_path):
    (tmp_path / "trigger.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    trigger = f'attack.trigger={{"kind":"image","file":"{tmp_path}/trigger.png","size_px":6}}'
    kinds = {work.kind for work in workload(**CIFAR_BYOL, settings=[trigger]).stages.values()}
    (evaluating,) = (kind for kind in kinds if isinstance(kind, EvaluateKind))
    assert not isinstance(evaluating.trigger, ImageTriggerSpec)
    assert evaluating.trigger.size_px == 6


@pytest.mark.parametrize(
    ("num_train", "asked", "sentence"),
    [
        (63, CIFAR_BYOL, "train clean-trained, seed 0: one batch needs 64 images, but there are only 63"),
        (250, CIFAR_BYOL, "repair clean-trained . CompRess, .*: one batch needs 64 images, but there are only 60"),
        (5000, {**CIFAR_BYOL, "settings": ["attack.target_class=dog"]}, "'dog' is not one of the 5 classes"),
    ],
)
def test_what_a_run_would_refuse_is_refused(workload, num_train, asked, sentence):
    with pytest.raises(SpecError, match=sentence):
        workload(num_train, **asked)
