"""What the command line offers: examples that parse, suggestions, completion, lists."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli
from flows.commands import dry_run, listing
from flows.recipes import RECIPES, Sized
from flows.terminal.arguments import parse
from flows.terminal.examples import EXAMPLES
from ssl_backdoor.errors import SpecError
from ssl_backdoor.stages import StageCall
from ssl_backdoor.store import LocalStore, Manifest

EVERY = [(command, example) for command, examples in EXAMPLES.items() for example in examples]


@pytest.mark.parametrize(("command", "example"), EVERY)
def test_every_example_is_a_command(command, example):
    do = dict.fromkeys(cli._COMMANDS, len)
    assert parse([command, *shlex.split(example.partition(" > ")[0])], do).command is len


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        parse([command, "--help"], {})
    assert ended.value.code == 0
    assert f"examples:\n  ssl-backdoor {command}" in capsys.readouterr().out


def test_all_commands_have_examples_and_bodies(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    listed = capsys.readouterr().out
    assert all(f"\n    {command}" in listed for command in EXAMPLES)
    assert {name.partition(" ")[0] for name in cli._COMMANDS} <= set(EXAMPLES)


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("ssl-backdoor 0.")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["rnu", "demo"], "there is no command 'rnu'; did you mean run?"),
        (["list", "ingets"], "there is no stage 'ingets'; did you mean ingest?"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_a_mistyped_word_is_told_with_what_looks_like_it(given, sentence):
    with pytest.raises(SpecError) as refused:
        parse(given, {})
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ssl-backdoor run cifar10_b", "cifar10_byol"),
        ("ssl-backdoor run demo --dry", "--dry-run"),
    ],
)
def test_a_shell_completes_commands_recipes_and_options(line, found, tmp_path):
    told = tmp_path / "found"
    env = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(told),
    }
    code = "from flows.terminal.arguments import parse; parse(None, {})"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, cwd=Path(cli.__file__).parents[1], check=True
    )
    assert found in told.read_text().replace(" ", "\v").split("\v")


def test_recipes_are_grouped_by_paper():
    rows = listing.recipes()["recipes"]
    assert {one["name"] for one in rows} == set(RECIPES)
    assert len(rows) == sum(2 if isinstance(one, Sized) else 1 for one in RECIPES.values())
    papers = {one["name"]: one["paper"] for one in rows}
    assert (papers["demo"], papers["cifar10_byol"]) == ("", "Saha et al. 2022")
    assert {paper for name, paper in papers.items() if name.startswith("carlini2022")} == {"Carlini & Terzis 2022"}
    lines = list(listing.render_recipes({"recipes": rows}))
    assert {"Saha et al. 2022", "Carlini & Terzis 2022"} <= set(lines)
    assert all(len(line) <= 100 for line in lines)
    json.dumps(rows)


@pytest.mark.parametrize(
    ("stage", "spec", "summary", "title"),
    [
        (
            "ingest",
            {"dataset": {}},
            {"classes": ["a", "b"], "num_train": 6, "num_test": 2},
            "6 train, 2 test, 2 classes",
        ),
        ("poison", {"attack": {"kind": "x", "target_class": "cat"}, "seed": 1}, {}, "x, cat, seed 1"),
        ("train", {"train": {"method": {"kind": "byol"}}, "seed": 0}, {}, "byol, seed 0"),
        ("evaluate", {"trigger": {"kind": "grid"}, "target_class": "cat", "seed": 0}, {}, "grid, cat, seed 0"),
        ("report", {"recipe": "demo", "runs": [1, 2]}, {}, "demo, 2 runs"),
        ("train", {"train": "odd"}, {}, ""),
    ],
)
def test_an_artifact_has_a_title(stage, spec, summary, title):
    facts = {"inputs": {}, "files": {}, "versions": {}, "seconds": 1.0}
    assert listing.title(Manifest(stage=stage, key="k", spec=spec, summary=summary, **facts)) == title


def test_artifacts_are_listed_with_age_and_size(tmp_path):
    store = LocalStore(tmp_path / "store")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x").write_text("x" * 2000)
    for stage in ("train", "report"):
        store.commit(
            stage, "ab" * 32, tmp_path / "files", spec={"recipe": "r", "seed": 0}, inputs={}, summary={}, seconds=1.0
        )
    found = listing.artifacts(store, "train")
    assert [one["ref"] for one in found["artifacts"]] == ["train/" + "ab" * 32]
    lines = list(listing.render_artifacts(found))
    assert lines[0].endswith("1 artifact")
    assert lines[1].startswith("train/abababababab ")
    assert "r, seed 0" in lines[1]
    assert len(listing.artifacts(store, None)["artifacts"]) == 2


def test_a_dry_run_tells_what_is_there_from_what_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    store = LocalStore(tmp_path / "store")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x").write_text("x")
    calls = {
        store.ref(stage, "ab" * 32): StageCall(None, title=f"the {stage}") for stage in ("ingest", "train", "report")
    }
    store.commit("ingest", "ab" * 32, tmp_path / "files", spec={}, inputs={}, summary={}, seconds=1.0)
    lines = list(dry_run.render(dry_run.dry_run(calls, store, "report")))
    assert [line.split()[0] for line in lines[:3]] == ["reuse", "make", "make"]
    assert lines[3].startswith("of 3 stages 1 would be reused and 2 made, in ")
    assert len(dry_run.dry_run(calls, store, "train")["stages"]) == 2
    assert [one["reused"] for one in dry_run.dry_run(calls, store, "ingest")["stages"]] == [True]
