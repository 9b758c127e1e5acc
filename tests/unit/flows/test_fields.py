"""What fields there are, how settings name them, and what a mistake in one is told."""

import pytest

from flows.fields import describe
from flows.plan import plan
from ssl_backdoor import plugins
from ssl_backdoor.errors import SpecError


def run_of(*settings, recipe="cifar10_byol"):
    return plan(recipe, pairs=1, settings=settings, has_data=recipe != "demo").runs[0]


def test_another_kind_comes_with_its_own_defaults_and_what_has_none_stays():
    before = run_of()
    method = run_of("train.method.kind=simclr").train.method
    assert (method.kind, method.projector_hidden_dim) == ("simclr", 2048)
    assert run_of("train.method.kind=byol").train.method == type(before.train.method)()  # its own kind's, too
    assert run_of("train.method.kind=simclr", "train.method.temperature=0.3").train.method.temperature == 0.3
    attack = run_of("attack.kind=saha2022_targeted").attack
    assert attack == type(attack)(target_class=before.attack.target_class)
    probes = run_of("evaluation.probes.linear.kind=linear_adam").evaluation.probes
    assert "linear_adam" in {probe.kind for probe in probes}


def test_settings_need_to_fit_together_only_once_all_are_made():
    run = run_of("train.method.kind=mae", "train.backbone.kind=vit", "train.backbone.patch_px=4")
    assert (run.train.method.kind, run.train.backbone.kind, run.train.backbone.patch_px) == ("mae", "vit", 4)
    with pytest.raises(SpecError, match=r"^--set train.method.kind=.*set train.backbone.kind to vit"):
        run_of("train.method.kind=mae", "train.fit.epochs=3")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train.method.kind=simclrr", "train.method: there is no kind 'simclrr'; did you mean simclr?"),
        ("attack.trigger.kind=gird", "attack.trigger: there is no kind 'gird'; did you mean grid?"),
        ("train.backbone.depth=7", "train.backbone.depth: Input should be 8"),
        ('train.fit.optimizer={"kind":"sgd","lrr":3}', "train.fit.optimizer.lrr: there is no such field (found 3)"),
        (
            'train={"method":"byol","fit":{"epoch":3}}',
            "train.fit.epoch: there is no such field (found 3); did you mean",
        ),
        ('evaluation.probes=["linear","zerp_shot"]', "evaluation.probes.1: there is no kind 'zerp_shot'; did you mean"),
        ("defences.compress.fit.epochs=0", "defences.0.fit.epochs: Input should be greater"),
        ("dataset.captions.knd=2", "dataset.captions has no field 'knd'; did you mean kind?"),
    ],
)
def test_a_mistake_names_a_path_that_a_setting_takes(setting, sentence):
    with pytest.raises(SpecError) as refused:
        run_of(setting)
    assert sentence in str(refused.value)
    assert not str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("", ["  attack: one of none, saha2022_targeted,", "  seed: whole number, at least 0; default 0"]),
        ("attack", ["  kind saha2022_targeted: Saha et al. 2022: the trigger on a share"]),
        ("train.method.byol", ['  ema_per: one of epoch, step; default "epoch"', "      Rises to 1 by a cosine over"]),
        ("train.fit.epochs", ["train.fit.epochs: whole number, at least 1, at most 100000; default 200"]),
        ("train.fit.optimizer.sgd.lr", ["train.fit.optimizer.sgd.lr: number, more than 0.0; default 0.06"]),
        ("defences.compress.fit.views", ["  crop_scale: list of number, at least 0.0, at most 1.0, number, at least"]),
        ("defences.*.trusted_fraction", ["defences.*.trusted_fraction: number"]),
        ("evaluation.label_fractions", ["evaluation.label_fractions: list, each number; default [0.01, 0.1, 1.0]"]),
        ("report", ["  runs: list, each a group of fields; required"]),
        ("report.figures.axis", ["report.figures.axis: one of num_poisons,"]),
    ],
)
def test_fields_are_described(path, lines):
    text = list(describe(path))
    for line in lines:
        assert [one for one in text if one.startswith(line)], text


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("train.metod", "train has no field or kind 'metod'; did you mean method?"),
        ("train.method.bylo", "train.method has no field or kind 'bylo'; did you mean byol?"),
        ("trian", "a run has no field or kind 'trian'; did you mean train or variant?"),
        ("seed.x", "seed has no field or kind 'x'; it has no fields"),
    ],
)
def test_what_is_not_there_is_told_with_what_looks_like_it(path, sentence):
    with pytest.raises(SpecError) as refused:
        list(describe(path))
    assert str(refused.value) == sentence


IDEA = '''
from typing import Literal
from ssl_backdoor.specs import Metric

class AnIdea(Metric):
    """What it is for."""
    kind: Literal["an_idea"] = "an_idea"
    power: int = 3
    """How strong."""
    def measure(self, *_, **__):
        return ()
'''


def test_a_plug_in_is_described_like_the_others(tmp_path):
    (tmp_path / "described_idea.py").write_text(IDEA)
    plugins.load(str(tmp_path / "described_idea.py"))
    try:
        assert "  kind an_idea: What it is for." in list(describe("evaluation.metrics"))
        text = list(describe("evaluation.metrics.an_idea"))
        assert text[0] == "evaluation.metrics.an_idea: What it is for."
        assert text[-2:] == ["  power: whole number; default 3", "      How strong."]
    finally:
        plugins.forget("ssl_backdoor_plugin_described_idea")


def test_every_type_has_words():
    for path in ("", "report", "dataset", "train.fit", "train.backbone.vit", "evaluation", "attack.saha2022_targeted"):
        for line in describe(path):
            assert "typing." not in line
            assert "<class" not in line
