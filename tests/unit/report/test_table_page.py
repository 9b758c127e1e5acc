import csv
import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from matrix_fakes import PAIRS, grid, matrix, matrix_spec, paper, table
from report_fakes import examples, one_pair, report_spec
from test_page import HOSTILE, Page

from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.figures.images import MAX_QUERIES, neighbours
from ssl_backdoor.report.page import write_report
from ssl_backdoor.report.stealth import Stealth
from ssl_backdoor.specs import TableRow

pytestmark = pytest.mark.slow  # drawing the figures of a page takes seconds

LABELS = ("BYOL", "RotNet")
MISSING = "suspect, trigger 13 -> cat, MAE, seed 2: the loss is not finite at step 12"
TABLES = (
    table(LABELS, title="Every method", paper=paper("BYOL", 0.6, 19.2, 0.532, 15.4, 0.616, 32.6, 0.389, 1442.3)),
    table(LABELS, "knn", name="table1_knn", title="Every method"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("matrix")
    found = matrix(out, LABELS, PAIRS[:2], seeds=2, num_test=100)
    summary = write_report(
        matrix_spec(found, TABLES, missing=(MISSING,)).model_copy(update={"show_recalled": True}),
        found,
        [one._replace(attack="saha2022_targeted") for one in examples(["a"])],
        {},
        out,
        {"train": 100.0},
        stealth={"saha2022_targeted": Stealth(50, 0.812, None, 0.14, 50)},
    )
    return out, summary


def test_every_figure_and_table_comes_with_its_data(written):
    out, _ = written
    names = {file.name for file in (out / "figures").iterdir()}
    for table_name in ("table1", "table1_knn"):
        assert {f"{table_name}.csv", f"{table_name}_comparisons.csv"} < names
        assert {f"{table_name}_{kind}.{suffix}" for kind in ("dots", "heat") for suffix in ("png", "csv")} < names
    assert {"neighbours.png", "neighbours.csv"} < names
    assert {"poisons_saha2022_targeted.png", "embedding.png", "confusion.png"} < names


def test_the_page_is_self_contained_and_its_anchors_lead_somewhere(written):
    out, _ = written
    page = Page((out / "report.html").read_text())
    assert page.count("script") == page.count("link") == 0
    anchors = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert anchors <= {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {"table-table1", "table-table1_knn", "neighbours"} < anchors
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in page.tags if tag == "img")


def test_both_twins_tell_the_same_in_order(written):
    out, summary = written
    marks = [
        "1 run failed and is not in it", "1 run failed and is in no number below", MISSING,
        "Over 2 seeds of 2 trigger/target pairs",
        "Every method, linear 100 %", "paper (unverified)", "Holm", "Every method, kNN", "Nearest clean images",
        "Every variant", "Figures of BYOL", "How visible the trigger is", "Cost", "device-hours",
    ]  # fmt: skip
    for text in (
        Page((out / "report.html").read_text()).text,
        unescape((out / "report.md").read_text()).replace("\\", ""),
    ):
        place = 0
        for mark in marks:
            assert mark in text[place:], f"{mark} is not in its place"
            place = text.index(mark, place)
        assert "saha2022 targeted" in text
        assert "over seeds" in text
    text = (out / "report.md").read_text().replace("\\", "")
    assert all(f"- {line}" in text for line in summary["answer"].splitlines())


def test_the_twin_shows_every_file_by_a_relative_path_and_keeps_its_columns(written):
    out, _ = written
    text = (out / "report.md").read_text()
    shown = re.findall(r"\]\((figures/[^)]*)\)", text)
    assert {path for path in shown if path.endswith(".csv")} >= {"figures/table1.csv", "figures/neighbours.csv"}
    assert all((out / path).is_file() for path in shown)
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") - line.count("\\|") for line in block.splitlines()}) == 1 for block in tables)


def test_false_positives_of_every_class_are_in_the_files_alone(written):
    out, _ = written
    assert "false_positives:cat" not in (out / "report.html").read_text()
    assert "false_positives:cat" in (out / "measurements.json").read_text()


def test_the_summary_has_comparisons_and_text(written):
    _, summary = written
    json.dumps(summary, allow_nan=False)
    assert [one["name"] for one in summary["tables"]] == ["table1", "table1_knn"]
    first = summary["tables"][0]
    assert [one["label"] for one in first["comparisons"]] == list(LABELS)
    assert first["comparisons"][0]["measure"] == "target_false_positives"
    assert "against the control" in summary["texts"][0]
    key = "target_false_positives_excess/suspect[BYOL]/triggered/linear_100"
    assert summary["headline"][key] == pytest.approx(first["comparisons"][0]["mean"])
    assert 0 < summary["headline"][key.replace("_excess", "_excess_p_holm")] <= 1
    assert 0 < summary["headline"]["accuracy/control[RotNet]/clean/knn"] < 1


def test_the_dots_and_the_heat_map_hold_what_was_measured(written):
    out, summary = written
    dots = list(csv.DictReader((out / "figures/table1_dots.csv").read_text().splitlines()))
    heat = list(csv.DictReader((out / "figures/table1_heat.csv").read_text().splitlines()))
    assert len(dots) == 8
    assert len(heat) == 4
    byol = [float(line["mean_difference"]) for line in heat if line["row"] == "BYOL"]
    assert np.mean(byol) == pytest.approx(summary["tables"][0]["comparisons"][0]["mean"])
    assert {line["num_seeds"] for line in heat} == {"2"}


def test_the_sheet_names_the_first_suspect_of_each_line(written):
    out, _ = written
    lines = list(csv.DictReader((out / "figures/neighbours.csv").read_text().splitlines()))
    assert {(line["row"], line["arm"], line["pair"]) for line in lines} == {
        (label, "suspect", "11 / airplane") for label in LABELS
    }
    assert len(lines) == len(LABELS) * 4 * 6


def test_fewer_triggered_images_than_shown_are_no_trouble(tmp_path):
    (one,) = (one for one in matrix(tmp_path, ("BYOL",), PAIRS[:1], 1, 100) if one.arm == "suspect")
    with np.load(one.neighbours) as file:
        few = {name: file[name][:1] for name in file.files}
    np.savez(tmp_path / "few.npz", **few)
    rows = (TableRow(label="BYOL", variant="BYOL"),)
    drawn = neighbours(rows, paired([replace(one, neighbours=tmp_path / "few.npz")]))
    assert drawn is not None
    assert drawn.data.count("\n") == 1 + 6 < 1 + 6 * MAX_QUERIES
    assert neighbours(rows, paired([replace(one, neighbours=None)])) is None


def test_hostile_names_are_shown_and_never_run(tmp_path):
    found = [
        replace(one, run=one.run.model_copy(update={"variant": HOSTILE}))
        for one in matrix(tmp_path, ("BYOL",), PAIRS[:2], 2, 100)
    ]
    hostile = table((HOSTILE,), title=HOSTILE, paper=paper(HOSTILE, *[1.0] * 8))
    write_report(matrix_spec(found, (hostile,), missing=(HOSTILE,)), found, [], {}, tmp_path)
    page, text = Page((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()
    assert page.count("script") == 0
    assert page.count("h1") == 1
    assert "<script>alert(1)" in page.text
    assert "<script" not in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") - line.count("\\|") for line in block.splitlines()}) == 1 for block in tables)


def test_tables_of_which_nothing_came_through_still_give_a_page(tmp_path):
    one = table(("BYOL",))
    spec = matrix_spec(grid({"BYOL": [[1]]}), (one,), missing=(MISSING,))
    summary = write_report(spec, [], [], {}, tmp_path)
    assert summary["answer"].startswith("There is no answer: no poisoned encoder")
    assert MISSING in Page((tmp_path / "report.html").read_text()).text
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        "leaderboard.csv",
        "table1.csv",
        "table1_comparisons.csv",
    }


def test_a_report_without_tables_has_nothing_of_them(tmp_path):
    found = one_pair(num_test=100)
    spec = report_spec(found)
    summary = write_report(spec, found, [], {}, tmp_path)
    assert "tables" not in summary
    for word in ("device-hours", "Missing.", "How visible"):
        assert word not in Page((tmp_path / "report.html").read_text()).text
        assert word not in (tmp_path / "report.md").read_text()


def test_pictures_are_of_the_main_variant_or_of_the_first_line(tmp_path):
    labelled = grid({"BYOL": [[1]], "RotNet": [[1]]})
    spec = matrix_spec(labelled, (table(("MAE", "RotNet", "BYOL")),))
    for found, title in ((labelled, "## Figures of RotNet\n"), ([*labelled, *grid({"": [[1]]})], "## Figures\n")):
        write_report(spec, found, examples(["a"]), {}, tmp_path)
        assert title in (tmp_path / "report.md").read_text()
