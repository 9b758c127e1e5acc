"""The whole chain through the command line: real Prefect, Ray and MLflow, tiny training."""

import json
import sqlite3
from contextlib import closing
from html.parser import HTMLParser

import pytest

from tests.support.command_server import TINY, shell

pytestmark = [pytest.mark.services, pytest.mark.slow]


@pytest.fixture(scope="module")
def first(experiment):
    outcome, folder = experiment
    return json.loads(outcome.stdout), folder


def test_json_is_one_object_with_every_arm(first):
    result, _ = first
    assert {"recipe", "runs", "measurements", "artifacts", "seconds"} <= set(result)
    rows = result["measurements"]
    arms = ("control", "suspect", "student", "distilled_control")
    swept = {"control[targeted]", "suspect[targeted]", *(f"{arm}[backdoor]" for arm in arms)}
    assert {row["arm"] for row in rows} == {*arms, *swept}
    assert {row["condition"] for row in rows} >= {"clean", "triggered", "unseen_trigger"}
    assert {"accuracy", "target_false_positives", "z_score_sd", "z_score_sd_excess"} <= {row["name"] for row in rows}
    for row in rows:
        assert {"name", "arm", "condition", "probe", "value", "n", "low", "high", "definition"} <= set(row)
        assert row["definition"]


def test_one_clean_encoder_a_method_and_each_stage_is_kept(first):
    _, folder = first
    counts = {
        stage.name: len(list(stage.iterdir())) for stage in (folder / "home/store").iterdir() if stage.name[0] != "."
    }
    assert counts == {"ingest": 1, "poison": 3, "train": 5, "defend": 4, "evaluate": 10, "report": 1}


def test_second_run_reuses_everything_and_says_the_same(first, lab):
    result, folder = first
    run, _ = lab
    with sqlite3.connect(folder / "home/prefect/prefect.db") as database:
        before = database.execute("select count(*) from task_run").fetchone()[0]
    again = run("run", "demo", *TINY, "--json")
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["measurements"] == result["measurements"]
    with sqlite3.connect(folder / "home/prefect/prefect.db") as database:
        rows = database.execute("select name, state_name from task_run order by created").fetchall()[before:]
    assert {state for name, state in rows if not name.startswith("record")} <= {"Reused"}, rows


def test_report_is_one_file_that_asks_for_nothing(first):
    result, _ = first
    with open(result["artifacts"]["report"], encoding="utf-8") as file:
        page = file.read()
    wanted = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attributes):
            wanted.extend(value for name, value in attributes if name in ("src", "href") and tag != "a")

    Links().feed(page)
    assert wanted
    assert all(link.startswith("data:") for link in wanted)
    assert "<script" not in page
    assert result["answer"].split(":")[0] in page


def test_mlflow_holds_one_parent_and_its_arms(first):
    result, folder = first
    with sqlite3.connect(folder / "home/mlflow.db") as database:
        children = database.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
        arms = {row[0] for row in database.execute("select value from params where key = 'arm'")}
        curves = database.execute("select count(*) from metrics where key = 'curve/loss'").fetchone()[0]
        inputs = database.execute("select count(*) from inputs where source_type = 'DATASET'").fetchone()[0]
        models = database.execute(
            "select count(*), count(distinct name) from logged_models where status = 2"
        ).fetchone()
        read = database.execute("select count(*) from inputs where source_type = 'RUN_INPUT'").fetchone()[0]
        count = "select count(*) from metrics join runs using (run_uuid) where name like 'demo %'"
        (of_parent,) = database.execute(count).fetchone()
        (note,) = database.execute("select value from tags where key = 'mlflow.note.content'").fetchone()
    assert children == 10
    defences = ("CompRess", "distilled image tower")
    assert arms == {
        f"{one}{defence}"
        for one in ("clean-trained", "poisoned")
        for defence in ("", *(f" + {defence}" for defence in defences))
    }
    assert curves >= 8
    assert inputs == 10 + 5 + 4  # tested on, poisoned with, and by the parent all that its children read
    assert (models, read) == ((9, 9), 10)  # a control that two runs share is one encoder
    assert of_parent == 24  # two figures of each of ten arms, the specific excess of four
    assert result["answer"].split()[0] in note


def active_runs(database_file):
    with closing(sqlite3.connect(database_file)) as database:
        return database.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0]


def test_reindex_fills_an_empty_record_once(first, tmp_path):
    _, folder = first
    record, store = tmp_path / "mlflow.db", ("--store", folder / "home/store")
    with shell(tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{record}") as run:
        for _ in range(2):
            told = run("reindex", *store)
            assert told.code == 0, told.stderr
            assert active_runs(record) == 1 + 10
        with closing(sqlite3.connect(record)) as database, database:  # as if the writer had died half-way
            database.execute("update runs set status = 'FAILED' where name like 'demo %'")
        again = run("reindex", *store)
        assert again.stdout != told.stdout
        assert active_runs(record) == 1 + 10


def test_show_and_export_take_a_short_reference(first, lab):
    run, folder = lab
    poisons = {
        "saha2022_targeted": (40, 40, 0),
        "carlini2022_targeted": (128, 0, 128),
        "carlini2022_backdoor": (50, 0, 50),
    }
    for artifact in (folder / "home/store/poison").iterdir():
        shown = run("show", f"poison/{artifact.name[:10]}")
        assert shown.code == 0
        manifest = json.loads(shown.stdout)
        kind = manifest["spec"]["attack"]["kind"]
        exported = run("export", f"poison/{artifact.name[:10]}", "--out", folder / kind)
        assert exported.code == 0, exported.stderr
        counts = json.loads(exported.stdout)
        found = manifest["summary"]["num_poisons"], counts["num_replaced"], counts["num_added"]
        assert found == poisons.pop(kind)
        assert list((folder / kind).rglob("*.tar"))
    assert not poisons


def test_both_papers_are_on_the_page(first):
    result, _ = first
    found = {(row["name"], row["arm"], row["condition"]) for row in result["measurements"]}
    for poisons, arm in ((0, "control[targeted]"), (16, "suspect[targeted]")):
        assert ("targeted_success", arm, f"num_poisons={poisons}") in found
    assert ("attack_success_rate", "student[backdoor]", "num_poisons=50") in found
    with open(result["artifacts"]["report"], encoding="utf-8") as file:
        page = file.read()
    assert "Target FP" in page
    assert "targeted poisoning" in page


def test_stage_by_stage(lab):
    run, _ = lab
    for stage in ("ingest", "poison"):
        outcome = run(stage, "demo", *TINY, "--set", "dataset.source.seed=5")
        assert outcome.code == 0, outcome.stderr
        assert stage in outcome.stdout


def test_recipes_are_listed_and_doctor_is_content(lab):
    run, _ = lab
    listing = run("recipes")
    assert listing.code == 0
    assert "cifar10_byol" in listing.stdout
    examined = run("doctor")
    assert examined.code == 0, examined.stdout
