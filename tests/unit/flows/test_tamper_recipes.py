"""The recipes of tampering and of the encoder zoo, as plans: what is trained once, and who is ranked among whom."""

from collections import Counter

import pytest

from flows.pipeline import plan_stages
from flows.recipes import choose
from flows.recipes.tamper import ZOO_DETECTORS, ZOO_METHODS
from ssl_backdoor.stages import DetectStage, TamperStage, TrainStage
from ssl_backdoor.store import LocalStore
from tasks.planner import Sources

SEEDS = 3


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    report = choose("encoder_zoo").build(2, SEEDS)
    store = LocalStore(tmp_path_factory.mktemp("zoo"))
    return plan_stages(report, store, lambda *_: "0" * 64, Sources(data="images"))


def test_each_encoder_of_the_zoo_is_made_once(zoo):
    kinds = Counter(call.stage for call in zoo.values())
    assert kinds["train"] == len(ZOO_METHODS) * SEEDS * 2  # clean and data-poisoned
    assert kinds["tamper"] == len(ZOO_METHODS) * SEEDS
    encoders = len(ZOO_METHODS) * SEEDS * 3
    siblings = len(ZOO_METHODS) * SEEDS  # the clean ones again, whose scores are the null
    assert kinds["detect"] == len(ZOO_DETECTORS) * (encoders + siblings)


def test_an_encoder_is_ranked_among_clean_ones_of_other_seeds_alone(zoo):
    for call in zoo.values():
        null = [zoo[ref] for role, ref in call.inputs.items() if role.startswith("sibling_")]
        if isinstance(call.spec, DetectStage) and null:
            assert len(null) == SEEDS - 1
            seeds = set()
            for one in null:
                made = zoo[one.inputs["model"]]
                assert isinstance(made.spec, TrainStage)
                assert "poison" not in made.inputs
                assert one.spec.detector == call.spec.detector
                seeds.add(made.spec.seed)
            assert seeds == set(range(SEEDS)) - {call.spec.seed}


def test_siblings_are_the_first_seeds_but_one_s_own():
    run = choose("encoder_zoo").build(1, 4).runs[0]
    found = {seed: run.model_copy(update={"seed": seed}).sibling_seeds for seed in (0, 2, 9)}
    assert found == {0: (1, 2, 3), 2: (0, 1, 3), 9: (0, 1, 2)}
    assert run.model_copy(update={"siblings": 0}).sibling_seeds == ()


@pytest.mark.parametrize(("size", "probed"), [("mini", "own"), ("paper", "other")])
def test_tamper_changes_clean_encoders_and_poisons_nothing(size, probed, tmp_path):
    report = choose("tamper", size).build(2, 2)
    assert {run.probe_on.kind for run in report.runs} == {probed}
    assert {run.attack.kind for run in report.runs} == {"badencoder", "drupe"}
    sources = Sources(data="images", probe_data="others" if probed == "other" else None)
    calls = plan_stages(report, LocalStore(tmp_path), lambda *_: "0" * 64, sources)
    kinds = Counter(call.stage for call in calls.values())
    assert (kinds["train"], kinds["tamper"]) == (2, 8)
    assert all(
        "poison" not in call.inputs for call in calls.values() if isinstance(call.spec, TrainStage | TamperStage)
    )
