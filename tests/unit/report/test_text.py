import pytest
from report_fakes import bare, ten_pairs

from ssl_backdoor.report.aggregate import Row, aggregate, per_pair
from ssl_backdoor.report.text import listing, number, probe_label, span
from ssl_backdoor.report.view import (
    cost_table,
    excess_table,
    full_table,
    headline_table,
    headline_text,
    pair_table,
    poison_table,
)


@pytest.mark.parametrize(
    ("value", "kind", "signed", "text"),
    [
        (1414.3, "count", False, "1,414"),
        (1414.3, "count", True, "+1,414"),
        (-12.0, "count", True, "−12"),
        (0.6134, "percent", False, "61.3 %"),
        (-0.0021, "percent", True, "−0.2 pt"),
        (1.239, "score", False, "1.24"),
        (None, "score", False, "–"),
        (float("nan"), "count", False, "–"),
    ],
)
def test_number(value, kind, signed, text):
    assert number(value, kind, signed) == text


def test_span_drops_units_and_keeps_signs():
    row = Row("accuracy", "control", "", "clean", "knn", 0.6, 10, 0.55, 0.65, "", "t")
    assert span(row, "percent") == "55.0 to 65.0"
    assert span(row, "percent", signed=True) == "+55.0 to +65.0"
    assert span(row._replace(low=None), "percent") == ""


def test_labels():
    assert [probe_label(p) for p in ("knn", "linear_100", "linear_sgd_0.5", "fine_tune_1")] == [
        "kNN",
        "linear 100 %",
        "linear SGD 0.5 %",
        "fine-tuned 1 %",
    ]
    assert [listing(parts) for parts in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.fixture(scope="module")
def ten():
    return ten_pairs(num_test=200)


def test_headline_has_all_arms_and_the_asked_columns(ten):
    table = headline_table(aggregate(ten))
    assert [line.label for line in table.lines] == ["control", "suspect", "student", "distilled control"]
    assert [(q.name, q.condition, q.probe) for q in table.columns] == [
        ("accuracy", "clean", "linear_100"),
        ("accuracy", "triggered", "linear_100"),
        ("target_false_positives", "triggered", "knn"),
        ("target_false_positives", "triggered", "linear_100"),
        ("target_false_positives", "unseen_trigger", "knn"),
        ("target_false_positives", "unseen_trigger", "linear_100"),
        ("z_score_sd", "triggered", "features"),
        ("top_class_share", "triggered", "knn"),
    ]
    assert all(cell.n == "n = 10" and " to " in cell.interval for line in table.lines for cell in line.cells)


def test_side_variants_stand_beside(ten):
    table = excess_table(aggregate(ten), "fraction_0.5")
    assert [line.arm for line in table.lines] == ["suspect", "student", "removed"]
    assert table.title == "fraction_0.5"


def test_an_undefined_share_is_said_in_words():
    rows = [("z_score_sd", "triggered", "features")]
    values = {"control": (1.0, 1.0, 1.0), "suspect": (0.5, 1.5, 1.0), "student": (1.0, 1.0, 1.0)}
    scored = [bare(arm, [(*rows[0], v)], trigger_seed=i) for arm, many in values.items() for i, v in enumerate(many)]
    (cell,) = excess_table(aggregate(scored)).lines[-1].cells
    assert cell[:2] == ("not defined", "no excess to remove")
    assert "not defined" in headline_text(aggregate(scored))


def test_every_pair_is_a_line_as_wide_as_the_head(ten):
    table = pair_table(aggregate(ten), per_pair(ten))
    assert len(table.lines) == 20
    assert {len(line) for line in table.lines} == {4 + 3 * len(table.groups) + len(table.removed)}


def test_terminal_table_is_aligned_and_fits(ten):
    lines = headline_text(aggregate(ten)).splitlines()
    assert max(map(len, lines)) <= 100
    values = [line for line in lines if line.startswith(("control", "suspect", "student", "distilled", "removed"))]
    assert len(values) == 5
    assert {len(line) for line in values} == {max(map(len, lines))}


def test_full_table_numbers_its_definitions(ten):
    rows = aggregate(ten)
    full, definitions = full_table(rows)
    assert len(full) == len(rows)
    assert all(definitions[line.definition - 1] == row.definition for line, row in zip(full, rows, strict=True))


def test_poison_and_cost_tables():
    summary = {"num_poisons": 1000, "poison_fraction_of_target": 1.0, "poison_fraction_of_dataset": 0.2}
    assert poison_table({"11 / cat": summary}) == (("11 / cat", "–", "1,000", "1", "0.2", "–"),)
    scored = [bare("control", []), bare("suspect", [])]
    assert cost_table(scored, {"train": 1234.5})[0] == ("stage train", "1,234.5", "")
    assert [line[0] for line in cost_table(scored, {})] == ["one control, mean", "one suspect, mean"]
