"""A spec that is printed can be read, changed and run again; what is no spec is refused in a sentence."""

import json
import tracemalloc

import pytest
import yaml

from flows import own_recipes
from flows.plan import plan
from flows.recipes import RECIPES, Sized, choose
from flows.spec_files import read, write
from ssl_backdoor.errors import SpecError
from ssl_backdoor.identity import canonical
from ssl_backdoor.store import LocalStore

SIZES = [
    (name, size)
    for name, one in RECIPES.items()
    for size in (("mini", "paper") if isinstance(one, Sized) else (None,))
    if isinstance(one, Sized) or one.follow is None
]


def planned(name, size=None, **asked):
    return plan(name, size, has_data=choose(name, size).needs_data, **asked)


def from_file(file, **asked):
    own_recipes.load(str(file), "unused")
    return plan(str(file), has_data=None, **asked)


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_every_recipe_comes_back_as_it_was_printed(name, size, tmp_path):
    """Equal reports have equal keys in all stages."""
    report = planned(name, size, pairs=1, seeds=2)
    for file, text in (("a.yaml", write(report)), ("a.json", write(report, as_json=True))):
        (tmp_path / file).write_text(text)
        assert from_file(tmp_path / file) == report


def test_the_whole_recipe_and_its_defaults_are_printed(tmp_path):
    report = planned("saha2022_table2_defence", "paper")
    text = write(report)
    assert read_text(tmp_path, "a.yaml", text) == report
    document = yaml.safe_load(text)
    assert document["runs"][0]["train"]["fit"]["views"]["flip_p"] == 0.5  # a default
    assert len(text) < len(write(report, as_json=True)) / 5  # what runs share is written once
    assert not [line for line in text.splitlines() if len(line) > 120]


def read_text(folder, name, text):
    (folder / name).write_text(text)
    return read(str(folder / name))


def test_odd_text_comes_back(tmp_path):
    names = [
        "no",
        "1e3",
        "0x1",
        "12:30",
        "2001-01-01",
        "~",
        "",
        "<<",
        "é",
        "a\u00a0b",
        "\x1b[2J",
        "a: b # c",
        "null",
        "𝔘",
        "=",
        "|",
        "on",
    ]
    report = planned("demo", settings=[f"dataset.classes={json.dumps(names)}"])
    text = write(report)
    assert all(line.isprintable() for line in text.split("\n"))
    assert read_text(tmp_path, "a.yaml", text) == report
    assert "é" in write(planned("demo", settings=['dataset.classes=["é"]']))


ONE = """
dataset: {source: {kind: scenes}, frame_px: 16}
attack: {kind: saha2022_targeted, trigger: {kind: grid, size_px: 5}, target_class: ring}
train:
  method: byol
  backbone: &small {kind: resnet, depth: 8, width: 16, stem: small}
  fit: {epochs: 2, optimizer: {kind: sgd, lr: 1e-2}, views: {size_px: 16}}
evaluation: {probes: [linear]}
"""


def test_one_run_is_a_spec_file_too(tmp_path):
    report = read_text(tmp_path, "mine.yaml", ONE)
    (run,) = report.runs
    assert (report.recipe, run.train.fit.optimizer.lr, run.train.method.kind) == ("mine", 0.01, "byol")
    assert report.question == "Does a patch on unlabelled images of one category bend what BYOL learns?"


def test_settings_change_a_file_as_they_change_a_recipe(tmp_path):
    report = planned("cifar10_byol", pairs=1)
    (tmp_path / "a.yaml").write_text(write(report))
    changed = from_file(tmp_path / "a.yaml", settings=["train.method.kind=simclr"])
    of_recipe = planned("cifar10_byol", pairs=1, settings=["train.method.kind=simclr"])
    assert (changed.runs, changed.question) == (of_recipe.runs, of_recipe.question)
    assert changed.note.count("px: far from the papers' scale.") == 1
    with pytest.raises(SpecError, match="are written out: leave --pairs and --seeds out"):
        from_file(tmp_path / "a.yaml", seeds=2)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "syntax": ("a.yaml", "runs:\n  - {kind: [}\n", "a.yaml line 2: "),
    "tab": ("a.yaml", "runs:\n\t- a\n", "a.yaml line 2: "),
    "twice": ("a.yaml", "recipe: a\nnote: b\nrecipe: c\n", "line 3: 'recipe' stands twice; leave one out"),
    "twice within": ("a.yaml", ONE + "seed: 1\nseed: 2\n", "'seed' stands twice"),
    "aliases": ("a.yaml", BOMB, "its aliases stand for more than 2,000,000 values"),
    "merges": ("a.yaml", MERGES, "its aliases stand for more than 2,000,000 values"),
    "circle": ("a.yaml", "runs: &a [*a]\n", "line 1: an alias stands within what it names"),
    "unknown alias": ("a.yaml", "runs: *a\n", "line 1: found undefined alias"),
    "deep": ("a.yaml", "runs: " + "[" * 100 + "]" * 100, "more than 50 deep"),
    "very deep": ("a.yaml", "runs: " + "[" * 50_000, "a.yaml"),
    "object": ("a.yaml", "runs: !!python/object/apply:os.system [ls]\n", "line 1: could not determine a constructor"),
    "wrong tag": ("a.yaml", "runs: !!int abc\n", "a value is none of its type"),
    "long number": ("a.yaml", f"seed: {'1' * 10_000}\n", "a value is none of its type"),
    "infinite": ("a.yaml", ONE.replace("1e-2", "1e999"), "runs.0.train.fit.optimizer.lr: "),
    "key": ("a.yaml", "? [a]\n: b\n", "expected the name of a field before the colon"),
    "two documents": ("a.yaml", "a: 1\n---\nb: 1\n", "expected a single document"),
    "nothing": ("a.yaml", "# nothing\n", "expected fields such as recipe and runs, found NoneType"),
    "a list": ("a.yml", "[1, 2]", "expected fields such as recipe and runs, found list"),
    "no run": ("a.yaml", "runs: []", "expected one run or more"),
    "control": ("a.yaml", "note: \x07\n", "characters are not allowed"),
    "field": (
        "a.yaml",
        ONE.replace("epochs", "epoch"),
        "runs.0.train.fit.epoch: there is no such field (found 2); did you mean epochs?",
    ),
    "kind": ("a.yaml", ONE.replace("byol", "bylo"), "runs.0.train.method: there is no kind 'bylo'; did you mean byol?"),
    "union": ("a.yaml", ONE.replace("depth: 8", "depth: 9"), "runs.0.train.backbone.depth: Input should be"),
    "missing": ("a.yaml", "attack: none\n", "runs.0.dataset: Field required"),
    "json": ("a.json", '{"runs": [\n}', "a.json line 2: "),
    "json twice": ("a.json", '{"note": "", "note": "b"}', "'note' stands twice"),
    "json NaN": ("a.json", '{"note": NaN}', "expected finite numbers, found NaN"),
    "json deep": ("a.json", "[" * 100_000, "a.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_spec_is_refused_in_a_sentence(name, tmp_path):
    file, text, sentence = REFUSED[name]
    tracemalloc.start()
    with pytest.raises(SpecError) as refused:
        read_text(tmp_path, file, text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sentence in str(refused.value)
    assert str(refused.value).isprintable()
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"\xff\xfe", "not text in UTF-8"), (b" " * (16 * 2**20 + 1), "at most 16 MiB"), (None, "No such file")],
)
def test_what_cannot_be_read_is_refused(data, sentence, tmp_path):
    if data is not None:
        (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(SpecError, match=sentence):
        read(str(tmp_path / "a.yaml"))


def test_a_report_of_the_store_is_run_again_without_its_data(tmp_path):
    """What its data were is in its artifacts; other data than those have to be given."""
    report = planned("cifar10_byol", pairs=1)
    store = LocalStore(tmp_path / "store")
    dataset = canonical(report.runs[0].dataset)
    commit(store, tmp_path, "ingest", {"dataset": dataset}, {"source": "5" * 64})
    commit(store, tmp_path, "poison", {}, {"dataset": "ingest"})
    commit(store, tmp_path, "report", canonical(report), {"000/poison": "poison"})
    digest = own_recipes.load("report/rep", store.root)
    assert plan("report/rep", has_data=None) == report
    assert digest(report.runs[0].dataset, None, None) == "5" * 64
    with pytest.raises(SpecError, match="look at other data than those of the report"):
        digest(report.runs[0].dataset.model_copy(update={"frame_px": 32}), None, None)


def test_a_report_that_is_not_whole_or_of_other_specs_is_refused(tmp_path):
    report = planned("demo")
    store = LocalStore(tmp_path / "store")
    commit(store, tmp_path, "report", canonical(report.model_copy(update={"missing": ("one: lost",)})), {})
    with pytest.raises(SpecError, match=r"without 1 run\(s\) that failed: run its recipe demo again"):
        own_recipes.load("report/report", store.root)
    other = LocalStore(tmp_path / "other")
    commit(other, tmp_path, "report", canonical(report) | {"colour": "red"}, {})
    with pytest.raises(SpecError, match=r"made with other specs than there are now.*colour"):
        own_recipes.load("report/report", other.root)


def commit(store, folder, stage, spec, inputs):
    files = folder / "files"
    files.mkdir(exist_ok=True)
    (files / "x").write_text(stage)
    return store.commit(stage, stage, files, spec=spec, inputs=inputs, summary={}, seconds=1.0)
