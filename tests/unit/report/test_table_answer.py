from dataclasses import replace

from matrix_fakes import KEY, grid, table
from report_fakes import bare

from ssl_backdoor.report.comparisons import compare
from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.sentences import punctuated, table_clauses
from ssl_backdoor.specs import TableRow

EXCESS = {
    "BYOL": [[590, 610, 600], [800, 820, 840]],
    "RotNet": [[-20, -30, -25], [-10, -20, -15]],
    "MAE": [[40, -30, 10], [-20, 10, 5]],
}


def said(runs, *tables, unit="seed", missing=0):
    results = paired(runs, unit)
    told = list(zip(tables, compare(tables, results), strict=True))
    return " ".join(punctuated(table_clauses(told, results, missing)))


def test_each_verdict_is_said_with_size_and_interval():
    text = said(grid(EXCESS), table(tuple(EXCESS)))
    assert text.startswith(
        "Attack works: yes with BYOL. "
        "Over 3 seeds of 2 trigger/target pairs, tested at 5 % after Holm's correction over the lines of all tables, "
        "target false positives (linear 100 %) on triggered images lie significantly above the control's with BYOL "
    )
    assert "They lie significantly below the control's with RotNet (−20, " in text
    assert "They show no significant difference from the control's with MAE (+2, " in text
    assert "Only the simultaneous intervals of BYOL and RotNet and BYOL and MAE do not overlap" in text
    assert "80 % power" not in text  # three seeds do not tell how many it would take
    assert "Clean accuracy differs from the control's by −1.0 pt" in text
    assert text.endswith(".")


def test_a_null_result_is_said_as_such():
    text = said(grid({"MAE": EXCESS["MAE"]}), table(("MAE",)))
    assert "target false positives (linear 100 %) on triggered images show no significant difference" in text
    assert "significantly above" not in text
    assert "significantly below" not in text


def test_overlapping_intervals_are_not_ranked():
    text = said(grid({"a": [[10, 30, 20]], "b": [[11, 29, 22]]}), table(("a", "b")))
    assert "Intervals that hold for all lines at once overlap, so the lines are not ranked" in text


def test_many_lines_that_are_apart_are_counted():
    excess = {f"m{i}": [[100 * i + 1, 100 * i + 2, 100 * i + 3]] for i in range(1, 5)}
    assert "6 of 6 comparisons have simultaneous intervals apart" in said(grid(excess), table(tuple(excess)))


def test_other_tables_are_told_without_numbers():
    knn = ("target_false_positives", "triggered", "knn")
    runs = grid(EXCESS)
    both = [replace(one, measurements=_also(one.measurements, knn)) for one in runs]
    text = said(both, table(tuple(EXCESS)), table(tuple(EXCESS), "knn", name="second"))
    assert (
        "Target false positives (kNN) on triggered images lie significantly above the control's with BYOL, and show "
        "no significant difference from the control's with RotNet and MAE" in text
    )


def _also(measurements, key):
    rows = measurements.to_pylist()
    copies = [row | {"probe": key[2]} for row in rows if row["name"] == key[0]]
    return type(measurements).from_pylist([*rows, *copies], schema=measurements.schema)


def test_one_run_of_each_is_no_evidence():
    text = said(grid({"BYOL": [[600]], "MAE": [[5]]}), *[table(("BYOL", "MAE"))] * 2)
    assert text.startswith("Attack works: cannot tell (n = 1). Target false positives")
    assert "+600 with BYOL and +5 with MAE" in text
    assert " lie " not in text
    assert "significant" not in text


def test_pairs_of_one_seed_share_their_control_and_are_no_test():
    text = said(grid({"BYOL": [[600], [610], [590]]}), table(("BYOL",)))
    assert text.startswith("Attack works: cannot tell (3 pairs, 1 clean-trained encoder). Target false positives")


def test_an_attack_on_accuracy_is_told_in_the_singular():
    runs = [
        bare(arm, [("accuracy", "triggered", "knn", value - seed / 100)], seed=seed, variant="BYOL")
        for seed in range(3)
        for arm, value in (("control", 0.6), ("suspect", 0.3 + seed / 200))
    ]
    text = said(runs, table(("BYOL",), "knn", measures=("accuracy",)))
    assert "accuracy (kNN) on triggered images lies significantly below the control's with BYOL (−29.5 pt, " in text


def test_what_the_student_removes_is_said():
    runs = [
        bare(arm, [(*KEY, value + seed)], seed=seed, variant="25 %")
        for seed in range(3)
        for arm, value in (("control", 100.0), ("suspect", 900.0 + seed), ("student", 300.0 - seed))
    ]
    rows = tuple(TableRow(label=label, variant="25 %", arm=arm) for label, arm in
                 (("no defence", "suspect"), ("student, 25 %", "student")))  # fmt: skip
    text = said(runs, table((), rows=rows))
    assert 'Of the poisoned encoder\'s excess the defence removes 75 % (74 to 76) with "student, 25 %"' in text


def test_missing_runs_are_told_and_nothing_at_all_too():
    assert said(grid(EXCESS), table(tuple(EXCESS)), missing=1).endswith("1 run failed and is not in it.")
    assert said([], table(("BYOL",)), missing=2) == (
        "There is no answer: the tables hold no encoder with a clean-trained one beside it. 2 runs failed, not in it."
    )
