"""Ideas of a user's own file, one of every family, end to end: nothing of the project is edited for them."""

import json
import platform
import sqlite3
import sys
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from ssl_backdoor.specs.family import BUILT_IN
from tests.support.command_server import TINY_SETTINGS, shell

pytestmark = [pytest.mark.services, pytest.mark.slow]
FILE = Path(__file__).with_name("own_ideas.py")
SETTINGS = [part for one in TINY_SETTINGS if not one.startswith("defences") for part in ("--set", one)]
RUN = ("run", f"{FILE}:everything", *SETTINGS, "--json")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "home").mkdir()
    kept = {"machine": [platform.node(), sys.version, version("prefect")], "at": time.time(), "seconds": 10.0}
    (folder / "home" / "startup.json").write_text(json.dumps(kept))  # test_estimate.py has one that is measured
    with shell(folder) as run:
        estimate = run("estimate", *RUN[1:], "--seconds", "1")
        assert estimate.code == 0, estimate.stderr
        first = run(*RUN)
        assert first.code == 0, first.stderr
        again = run(*RUN)
        assert again.code == 0, again.stderr
    return folder, json.loads(estimate.stdout), json.loads(first.stdout), json.loads(again.stdout)


def manifests(folder: Path, stage: str) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted((folder / "home/store" / stage).glob("*/manifest.json"))]


def test_the_file_has_an_idea_of_every_family():
    text = FILE.read_text()
    bases = {"trigger": "Trigger", "attack": "Attack", "method": "Method", "defence": "Repair", "detector": "Detector"}
    assert {*bases, "probe", "metric"} == set(BUILT_IN)
    for base in (*bases.values(), "Probe", "Metric", "Filter", "RobustTraining", "TamperAttack"):
        assert f"{base})" in text


def test_every_stage_is_estimated(outcome):
    folder, estimate, *_ = outcome
    counts = {stage: one["count"] for stage, one in estimate["stages"].items() if one["count"]}
    made = {stage: len(manifests(folder, stage)) for stage in counts}
    assert counts == made
    assert {"filter", "tamper", "defend", "detect"} <= set(counts)
    assert all(estimate["stages"][stage]["seconds"] > 0 for stage in counts)


def test_each_defence_is_tried_on_both_encoders_and_a_filter_trains_on_what_it_keeps(outcome):
    folder, *_ = outcome
    (dataset,) = manifests(folder, "ingest")
    for judged in manifests(folder, "filter"):
        summary = judged["summary"]
        assert 0 < summary["num_left_out"] < summary["num_samples"] == dataset["summary"]["num_train"]
        trained = [one for one in manifests(folder, "train") if one["inputs"].get("filter") == judged["key"]]
        assert len(trained) == 1
        assert trained[0]["inputs"].get("poison") == judged["inputs"].get("poison")
    # Of the tampered run only the filter with a judge is another: its judge is the tampered encoder.
    kinds = [one["spec"]["defence"]["kind"] for one in manifests(folder, "filter")]
    assert sorted(kinds) == [
        "darkest",
        "darkest",
        "lonely",
        "lonely",
        "lonely",
    ]


def test_detectors_are_compared_with_what_is_true(outcome):
    folder, *_ = outcome
    found = {one["spec"]["detector"]["kind"]: one["summary"]["measurements"] for one in manifests(folder, "detect")}
    assert found["bright_inputs"]["detection_auroc"] > 0.6  # the trigger makes images brighter
    assert set(found["spread"]) == {"detection_found", "detection_score"}  # it knows no null


def test_a_probe_and_a_metric_of_ones_own_are_in_the_report(outcome):
    _, _, first, again = outcome
    names = {(row["name"], row["probe"]) for row in first["measurements"]}
    assert ("accuracy", "nearest_mean_100") in names
    assert ("worst_class_accuracy", "knn") in names
    assert first["artifacts"]["report_ref"] == again["artifacts"]["report_ref"]


def test_mlflow_has_what_they_measured(outcome):
    folder, *_ = outcome
    with closing(sqlite3.connect(folder / "home/mlflow.db")) as database:
        names = {name for (name,) in database.execute("select distinct key from metrics")}
        arms = {arm for (arm,) in database.execute("select distinct value from params where key = 'arm'")}
    assert {"worst_class_accuracy/clean/knn", "accuracy/clean/nearest_mean_100"} <= names
    assert {"detection_auroc/bright_inputs", "detection_score/spread", "filter_recall/filter"} <= names
    assert {"poisoned + darkest", "clean-trained + slower"} <= arms


def test_the_digest_of_the_file_is_in_the_keys(outcome):
    folder, *_ = outcome
    assert all("source_sha256" in one["spec"]["attack"] for one in manifests(folder, "poison"))
    assert all("source_sha256" not in json.dumps(one["spec"]) for one in manifests(folder, "ingest"))
    assert all("source_sha256" in one["spec"]["train"]["method"] for one in manifests(folder, "train"))
