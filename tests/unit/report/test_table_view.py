import csv
import re
from dataclasses import replace

import pytest
from matrix_fakes import KEY, grid, paper, table
from report_fakes import bare

from ssl_backdoor.report.comparisons import compare
from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.sections.table import (
    VERDICTS,
    PaperTable,
    comparison_csv,
    comparison_table,
    comparison_title,
    cost_table,
    p_text,
    unit_note,
)
from ssl_backdoor.specs import PaperCell, TableRow

EXCESS = {"BYOL": [[290, 310, 300], [500, 520, 540]], "RotNet": [[-20, -30, -25], [-10, -20, -15]]}
SAID = paper("BYOL", 0.6, 19.2, 0.532, 15.4, 0.616, 32.6, 0.389, 1442.3)


def evidence(runs, unit="seed"):
    return paired(runs, unit)


def paper_table(table, results):
    return PaperTable(table, results).shown()


@pytest.fixture(scope="module")
def found():
    return evidence(grid(EXCESS))


def test_four_cells_by_measure_with_the_papers_line_below(found):
    shown = paper_table(table(tuple(EXCESS), paper=SAID), found)
    assert [(head.title, head.span) for head in shown.heads[0][1:]] == [
        ("clean-trained, clean images", 2), ("clean-trained, triggered images", 2),
        ("poisoned, clean images", 2), ("poisoned, triggered images", 2),
    ]  # fmt: skip
    assert [head.title for _, head in shown.columns[1:]] == ["Accuracy", "Target FP"] * 4
    assert [line.label for line in shown.lines] == ["BYOL", "paper (unverified)", "RotNet"]
    assert [cell.value for cell in shown.lines[1].cells][-2:] == ["38.9 %", "1,442"]


def test_a_cell_has_value_interval_n_and_range_over_pairs(found):
    shown = paper_table(table(tuple(EXCESS)), found)
    assert [group for group, _ in shown.columns[1:]] == [
        "clean-trained, clean images", "clean-trained, triggered images", "poisoned, clean images",
        "poisoned, triggered images",
    ]  # fmt: skip
    last = shown.lines[0].cells[-1]  # (100 + 10 seed) + excess, pairs averaged: 495, 525, 540
    assert last.value == "520 (13 %)"
    assert last.interval == "466 to 582"
    assert last.n == "n = 3 seeds"
    assert last.spread == "pairs 410 to 630"
    assert shown.lines[0].cells[1].spread == ""  # both pairs share the control: nothing to range over


def test_columns_without_any_number_are_left_out(found):
    shown = paper_table(table(tuple(EXCESS), measures=("z_score_sd", "target_false_positives")), found)
    assert [(group, head.title) for group, head in shown.columns[1:]] == [
        ("clean-trained, triggered images", "Target FP"), ("poisoned, triggered images", "Target FP")
    ]  # fmt: skip


def test_what_failed_keeps_its_line_and_the_papers():
    shown = paper_table(table(("RotNet", "BYOL"), paper=SAID), evidence(grid({"RotNet": EXCESS["RotNet"]})))
    assert [line.label for line in shown.lines] == ["RotNet", "BYOL", "paper (unverified)"]
    assert {cell.value for cell in shown.lines[1].cells} == {"–"}


def test_values_that_were_read_are_marked_apart():
    read = tuple(cell.model_copy(update={"is_verified": cell.condition == "clean"}) for cell in SAID)
    shown = paper_table(table(("BYOL",), paper=read), evidence(grid({"BYOL": EXCESS["BYOL"]})))
    assert [line.label for line in shown.lines] == ["BYOL", "paper", "paper (unverified)"]
    assert [cell.value for cell in shown.lines[1].cells][:4] == ["60.0 %", "19", "–", "–"]


def defended():
    return [
        bare(arm, [(*KEY, value + seed), ("accuracy", "clean", KEY[2], 0.5)], seed=seed, variant="25 %")
        for seed in range(3)
        for arm, value in (("control", 100.0), ("suspect", 900.0 + seed), ("student", 150.0 - seed))
    ]


def test_lines_about_one_arm_have_clean_and_triggered_columns():
    rows = (TableRow(label="attacked", variant="25 %"), TableRow(label="student", variant="25 %", arm="student"))
    said = PaperCell(row="student", arm="student", condition="clean", name="accuracy", value=0.446)
    shown = paper_table(table((), rows=rows, paper=(said,)), evidence(defended()))
    assert [(head.title, head.span) for head in shown.heads[0][1:]] == [("clean images", 1), ("triggered images", 1)]
    assert [(line.label, line.tone) for line in shown.lines] == [
        ("attacked, clean-trained", "control"), ("attacked, poisoned", "suspect"), ("student", "student"),
        ("paper (unverified)", "paper"),
    ]  # fmt: skip
    assert [line.cells[1].value for line in shown.lines] == ["101 (3 %)", "902 (23 %)", "150 (4 %)", "–"]


def test_a_single_run_shows_its_wilson_interval_and_says_that_it_is_one():
    runs = [bare("suspect", [(*KEY, 40.0, 4000, 29.0, 54.0)], variant="BYOL")]
    assert paper_table(table(("BYOL",)), evidence(runs)).lines[0].cells[0][:3] == ("40 (1 %)", "", "1 model")


def test_the_csv_holds_every_number_of_ours_and_of_the_papers(found):
    lines = list(csv.DictReader(PaperTable(table(tuple(EXCESS), paper=SAID), found).csv().splitlines()))
    assert [line["source"] for line in lines].count("paper (unverified)") == 8
    (ours,) = [one for one in lines if (one["source"], one["row"], one["arm"], one["condition"], one["name"]) ==
               ("ours", "BYOL", "suspect", "triggered", KEY[0])]  # fmt: skip
    assert [float(ours[name]) for name in ("value", "n", "pair_low", "pair_high")] == [520.0, 3.0, 410.0, 630.0]


def test_comparisons_as_text_and_csv(found):
    comparisons = compare([table((*EXCESS, "MAE"))], found)[0]
    first, second, last = ([cell.value for cell in line.cells] for line in comparison_table(comparisons).lines)
    assert first[0] == "+410"
    assert first[2:4] == ["+300 to +520", "3 seeds"]
    assert "significantly below the control" in second
    assert last == ["–", "–", "–", "0 seeds", "–", "–", "–", "not told below 5 seeds", "not measured", "–", "–", "–"]
    lines = list(csv.DictReader(comparison_csv(comparisons).splitlines()))
    assert [(line["label"], line["verdict"]) for line in lines] == [
        (one.label, VERDICTS[one.verdict]) for one in comparisons
    ]
    assert float(lines[0]["mean"]) == 410.0
    assert comparison_title(comparisons) == "Target FP (linear 100 %) on triggered images, poisoned − control"


def test_a_shared_control_is_named_where_pairs_are_the_units():
    one_seed = compare([table(("a",))], paired(grid({"a": [[1], [2], [4]]}), "seed"))[0]
    assert unit_note(one_seed).startswith("Intervals and tests are over pairs")
    assert "share clean-trained encoders" in unit_note(one_seed)
    assert "share" not in unit_note(compare([table(("a",))], paired(grid({"a": [[1, 2], [3, 5]]}), "seed"))[0])


@pytest.mark.parametrize(
    ("p", "text"),
    [(None, "–"), (0.00042, "< 0.001"), (0.0123, "0.012"), (0.049, "0.049"), (0.5, "0.50"), (1.0, "1.00")],
)
def test_p_values(p, text):
    assert p_text(p) == text


def test_the_terminal_gets_table_and_comparisons_in_fixed_width(found):
    one = table(tuple(EXCESS), paper=SAID)
    text = PaperTable(one, found).text(compare([one], found)[0])
    assert max(len(line) for line in text.splitlines()) <= 125
    assert re.search(r"RotNet +−20 +.* 3 seeds .* significantly below the control", text)
    assert "Table 1 (linear_100), linear 100 %" in text
    nothing = table(("MAE",))
    assert "not measured" in PaperTable(nothing, found).text(compare([nothing], found)[0])


def test_cost_counts_the_control_of_a_seed_once():
    runs = grid({"BYOL": [[1, 2], [3, 4]]})  # two pairs, two seeds
    runs = [replace(one, seconds=70.0, facts={"seconds": 60.0, "num_replicas": 2.0}) for one in runs]
    control, suspect = ([line.label, *(cell.value for cell in line.cells)] for line in cost_table(paired(runs)).lines)
    assert control == ["BYOL", "clean-trained", "2", "60.0", "4", "10.0", f"{(2 * 60 * 2 + 40) / 3600:.3f}"]
    assert suspect == ["BYOL", "poisoned", "4", "60.0", "4", "10.0", f"{(4 * 60 * 2 + 40) / 3600:.3f}"]
