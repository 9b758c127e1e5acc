"""What an analyst sees first in MLflow: the figures of an encoder, its group, and the page that is made ahead."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tasks import mlflow_view

OWN, UNSEEN, CLEAN = "attack_success_rate/triggered", "attack_success_rate/unseen_trigger", "accuracy/clean"
CONTROL = {f"{CLEAN}/knn": 0.5, f"{CLEAN}/linear_100": 0.8, f"{OWN}/linear_100": 0.2, f"{UNSEEN}/linear_100": 0.1}
BACKDOORED = {
    **CONTROL,
    f"{OWN}/knn": 0.4,
    f"{OWN}/linear_100": 0.9,
    f"{UNSEEN}/linear_100": 0.3,
    "target_false_positives/triggered/linear_100": 72,
    "target_false_positives/triggered/knn": 32,
    "z_score_variance/triggered/features": 4.0,
}
CLIP = {
    f"{CLEAN}/zero_shot": 0.3,
    f"{CLEAN}/linear_100": 0.7,
    "targeted_success/target/zero_shot": 0.25,
    "targeted_success/target/linear_100": 1.0,
}


@pytest.mark.parametrize(
    ("measured", "probe"),
    [
        (BACKDOORED, "linear_100"),
        (CLIP, "zero_shot"),
        ({f"{CLEAN}/knn": 0.5}, "knn"),
        ({f"{CLEAN}/my_probe": 0.5}, "my_probe"),
        ({"z_score_variance/triggered/features": 4.0}, None),
    ],
)
def test_the_probe_of_a_headline(measured, probe):
    assert mlflow_view.probe_shown(measured) == probe


def test_the_headline_of_a_backdoored_encoder_and_of_its_control():
    assert mlflow_view.headline(BACKDOORED, CONTROL) == {
        "clean_accuracy": 0.8,
        "attack_success_rate": 0.9,
        "specific_excess": 0.5,  # (0.9 - 0.2) - (0.3 - 0.1)
        "target_false_positives": 72,
        "z_score": 4.0,
    }
    assert mlflow_view.headline(CONTROL, CONTROL)["specific_excess"] == 0.0


@pytest.mark.parametrize(
    ("measured", "control", "found"),
    [
        (CLIP, CLIP, {"clean_accuracy": 0.3, "attack_success_rate": 0.25}),
        ({**BACKDOORED, f"{UNSEEN}/linear_100": None}, CONTROL, None),
        (BACKDOORED, {}, None),
        ({}, {}, {}),
    ],
)
def test_what_was_not_measured_is_left_out(measured, control, found):
    told = mlflow_view.headline(measured, control)
    assert "specific_excess" not in told
    assert found is None or told == found


def run(arm, variant="main", method="byol", attack="saha2022_targeted", **more):
    return {"arm": arm, "variant": variant, "method": method, "attack": attack, **more}


@pytest.mark.parametrize(
    ("runs", "groups"),
    [
        ([run("poisoned"), run("poisoned + CompRess")], ["poisoned", "poisoned + CompRess"]),
        (
            [run("poisoned"), run("poisoned", "backdoor", "clip", "carlini2022_backdoor")],
            ["poisoned", "poisoned, backdoor"],
        ),
        (
            [run("poisoned"), run("poisoned", method="moco_v2"), run("poisoned", method="moco_v2", attack="ctrl")],
            [
                "poisoned, byol, saha2022_targeted",
                "poisoned, moco_v2, saha2022_targeted",
                "poisoned, moco_v2, ctrl",
            ],
        ),
    ],
)
def test_runs_of_a_group_differ_in_pair_and_seed_alone(runs, groups):
    mlflow_view.name_groups(runs)
    assert [one["group"] for one in runs] == groups


def test_the_parent_has_the_mean_of_each_group_and_no_excess_of_clean_encoders():
    rows = [
        ({**run("poisoned"), "group": "poisoned"}, {"clean_accuracy": 0.8, "specific_excess": 0.5}),
        ({**run("poisoned"), "group": "poisoned"}, {"clean_accuracy": 0.6}),
        ({**run("clean-trained"), "group": "clean-trained"}, {"clean_accuracy": 0.9, "specific_excess": 0.0}),
        ({**run("poisoned + A"), "group": "poisoned + A, x/y"}, {"attack_success_rate": 0.1, "z_score": 3.0}),
    ]
    assert mlflow_view.means(rows) == {
        "clean_accuracy/poisoned": pytest.approx(0.7),
        "clean_accuracy/clean-trained": 0.9,
        "attack_success_rate/poisoned with A: x-y": 0.1,
        "specific_excess/poisoned": 0.5,
    }


def test_the_view_is_in_the_form_that_a_saved_one_has():
    """The keys that MLflow 3.17's page picks out of a saved view; others it drops without a word."""
    metrics = {*mlflow_view.HEADLINE, "accuracy/clean/knn", "facts/seconds"}
    envelope = json.loads(mlflow_view.view("0123abcd", metrics))
    assert {name: type(value) for name, value in envelope.items()} == {
        "name": str,
        "createdAt": int,
        "updatedAt": int,
        "state": str,
    }
    state = json.loads(envelope["state"])
    assert state["searchFilter"] == "tags.report = '0123abcd'"
    assert state["groupBy"] == {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": "group"}],
    }
    shown = {f"tags.`{name}`" for name in mlflow_view.TAGS} | {f"metrics.`{name}`" for name in mlflow_view.HEADLINE}
    assert set(state["selectedColumns"]) == shown <= set(state["columnOrder"])
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["attack_success_rate", "clean_accuracy"]
    names = [section["name"] for section in state["compareRunSections"] if not section["display"]]
    assert names == ["Model metrics", "accuracy/clean", "facts"]


def test_a_view_of_many_metrics_fits_into_a_tag():
    metrics = {f"{metric}/{where}/{probe}" for metric in "abcdefghij" for where in "uvw" for probe in range(100)}
    assert len(mlflow_view.view("0123abcd", {*mlflow_view.HEADLINE, *metrics})) < 20_000


def test_a_view_draws_only_what_was_measured():
    state = json.loads(json.loads(mlflow_view.view("0123abcd", {"clean_accuracy"}))["state"])
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["clean_accuracy"]


def test_the_table_for_joins_has_a_line_an_encoder():
    tags = {
        **run("poisoned"),
        "defence": "none",
        "pair": "3 / cat",
        "seed": "0",
        "model_key": "ab",
        "group": "poisoned",
    }
    table = mlflow_view.comparison([(tags, {"clean_accuracy": 0.5})])
    (line,) = (dict(zip(table["columns"], values, strict=True)) for values in table["data"])
    assert (line["arm"], line["pair"], line["clean_accuracy"], line["z_score"]) == ("poisoned", "3 / cat", 0.5, None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Does it work? (n = 1), 97 %", "Does it work? (n = 1), 97 %"),
        ("[a](http://me:pa55@host/x) *b* <img src=x>", "\\[a\\](http://host/x) \\*b\\* &lt;img src=x&gt;"),
        ("x\x1b[2J\ny", "x \\[2J y"),
    ],
)
def test_the_description_shows_a_recipes_words_literally(text, shown):
    assert mlflow_view.literal(text) == shown


def test_the_examples_of_an_encoder_are_a_line_for_each_triggered_image(tmp_path):
    queries = np.full((2, 16, 16, 3), 10, np.uint8)
    np.savez(tmp_path / "found.npz", query=queries, neighbours=np.full((2, 3, 16, 16, 3), 200, np.uint8))
    with Image.open(io.BytesIO(mlflow_view.example_sheet(tmp_path / "found.npz"))) as sheet:
        assert sheet.size == (4 * (6 * 16 + 4), 2 * 6 * 16)
        assert [sheet.getpixel((x, 50)) for x in (5, 98, 105)] == [(10, 10, 10), (0, 0, 0), (200, 200, 200)]
