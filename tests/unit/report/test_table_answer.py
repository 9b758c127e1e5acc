from dataclasses import replace

from matrix_fakes import KEY, grid, table
from report_fakes import bare

from ssl_backdoor.report.comparisons import compare
from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.sentences import MOST_WORDS, punctuated, table_clauses
from ssl_backdoor.report.verdicts import is_short, of_tables, verdict_lines
from ssl_backdoor.specs import TableRow

EXCESS = {
    "BYOL": [[590, 610, 600], [800, 820, 840]],
    "RotNet": [[-20, -30, -25], [-10, -20, -15]],
    "MAE": [[40, -30, 10], [-20, 10, 5]],
}


def told(runs, *tables, unit="seed"):
    results = paired(runs, unit)
    compared = list(zip(tables, compare(tables, results), strict=True))
    lines = verdict_lines(of_tables(compared, results))
    sentences = punctuated(table_clauses(compared))
    assert all(is_short(line) for line in lines)
    assert all(is_short(sentence, MOST_WORDS) for sentence in sentences)
    return lines, " ".join(sentences)


def test_each_verdict_is_said():
    lines, text = told(grid(EXCESS), table(tuple(EXCESS)))
    assert lines[0] == "Attack: works for BYOL; no, it lowers it for RotNet; no effect found for MAE."
    assert lines[1].startswith("BYOL: Target FP 820, control 110.")
    assert text.startswith(
        "Over 3 seeds of 2 trigger/target pairs, tested at 5 % after Holm's correction over the lines of all tables. "
        "Target FP (linear 100 %) under the trigger, significantly above the control's: BYOL. "
    )
    assert "under the trigger, significantly below the control's: RotNet." in text
    assert "under the trigger, no significant difference: MAE." in text
    assert "Simultaneous intervals that do not overlap: BYOL and RotNet and BYOL and MAE." in text


def test_a_null_result_is_said_as_such():
    lines, text = told(grid({"MAE": EXCESS["MAE"]}), table(("MAE",)))
    assert lines[0].startswith("Attack: no effect found. ")
    assert "no significant difference: MAE" in text
    assert "significantly above" not in text


def test_overlapping_intervals_are_not_ranked():
    _, text = told(grid({"a": [[10, 30, 20]], "b": [[11, 29, 22]]}), table(("a", "b")))
    assert "Intervals that hold for all lines at once overlap, so the lines are not ranked" in text


def test_many_lines_that_are_apart_are_counted():
    excess = {f"m{i}": [[100 * i + 1, 100 * i + 2, 100 * i + 3]] for i in range(1, 5)}
    assert "do not overlap: 6 of 6." in told(grid(excess), table(tuple(excess)))[1]


def test_other_tables_are_told_too():
    knn = ("target_false_positives", "triggered", "knn")
    runs = grid(EXCESS)
    both = [replace(one, measurements=_also(one.measurements, knn)) for one in runs]
    _, text = told(both, table(tuple(EXCESS)), table(tuple(EXCESS), "knn", name="second"))
    assert "Target FP (kNN) under the trigger, significantly above the control's: BYOL." in text
    assert "Target FP (kNN) under the trigger, no significant difference: RotNet and MAE." in text


def _also(measurements, key):
    rows = measurements.to_pylist()
    copies = [row | {"probe": key[2]} for row in rows if row["name"] == key[0]]
    return type(measurements).from_pylist([*rows, *copies], schema=measurements.schema)


def test_one_run_of_each_is_no_evidence():
    lines, text = told(grid({"BYOL": [[600]], "MAE": [[5]]}), *[table(("BYOL", "MAE"))] * 2)
    assert lines[0] == "Attack: cannot tell (1 run)."
    assert lines[-1] == "Clean accuracy: cannot tell (1 run)."
    assert text == ""


def test_pairs_of_one_seed_share_their_control_and_are_no_test():
    lines, _ = told(grid({"BYOL": [[600], [610], [590]]}), table(("BYOL",)))
    assert lines[0].startswith("Attack: cannot tell (3 pairs, 1 control).")


def test_an_attack_on_accuracy_works_where_it_falls():
    runs = [
        bare(arm, [("accuracy", "triggered", "knn", value - seed / 100)], seed=seed, variant="BYOL")
        for seed in range(3)
        for arm, value in (("control", 0.6), ("suspect", 0.3 + seed / 200))
    ]
    lines, text = told(runs, table(("BYOL",), "knn", measures=("accuracy",)))
    assert lines[0] == "Attack: works. Clean accuracy 29.5 % (1,180 of 4,000), control 59.0 %."
    assert "Accuracy (kNN) under the trigger, significantly below the control's: BYOL." in text


def test_what_the_student_removes_is_said():
    runs = [
        bare(arm, [(*KEY, value + seed)], seed=seed, variant="25 %")
        for seed in range(3)
        for arm, value in (("control", 100.0), ("suspect", 900.0 + seed), ("student", 300.0 - seed))
    ]
    rows = tuple(TableRow(label=label, variant="25 %", arm=arm) for label, arm in
                 (("no defence", "suspect"), ("student, 25 %", "student")))  # fmt: skip
    assert "Defence: removes part of it. 75 % of the excess (74 to 76)." in told(runs, table((), rows=rows))[0]


def test_nothing_at_all_is_no_answer():
    lines, text = told([], table(("BYOL",)))
    assert lines == ["There is no answer: no poisoned encoder with a clean-trained one beside it."]
    assert text == ""
