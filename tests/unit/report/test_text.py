import pytest
from report_fakes import bare, ten_pairs

from ssl_backdoor.report.cells import headline_quantities, listing, number, span
from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.frame import probe_label
from ssl_backdoor.report.sections.pairs import excess_table, headline_table, headline_text, pair_table


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
    assert span(0.55, 0.65, "percent") == "55.0 to 65.0"
    assert span(0.55, 0.65, "percent", signed=True) == "+55.0 to +65.0"
    assert span(None, 0.65, "percent") == ""


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
    return paired(ten_pairs(num_test=200))


def test_headline_has_all_arms_and_the_asked_columns(ten):
    table = headline_table(ten)
    assert [line.label for line in table.lines] == [
        "clean-trained",
        "poisoned",
        "poisoned + CompRess",
        "clean-trained + CompRess",
    ]
    assert len(table.columns) == 9
    assert [q.measure[:3] for q in headline_quantities(ten.probes())] == [
        ("accuracy", "clean", "linear_100"),
        ("accuracy", "triggered", "linear_100"),
        ("target_false_positives", "triggered", "knn"),
        ("target_false_positives", "triggered", "linear_100"),
        ("target_false_positives", "unseen_trigger", "knn"),
        ("target_false_positives", "unseen_trigger", "linear_100"),
        ("z_score_sd", "triggered", "features"),
        ("top_class_share", "triggered", "knn"),
    ]
    assert {cell.n for line in table.lines for cell in line.cells} == {"n = 10 pairs"}
    has_interval = {line.tone: {bool(cell.interval) for cell in line.cells} for line in table.lines}
    assert has_interval["suspect"] == has_interval["student"] == {True}
    assert has_interval["control"] == has_interval["distilled_control"] == {False}  # all pairs share these


def test_side_variants_stand_beside(ten):
    table = excess_table(ten, "fraction_0.5")
    assert [line.tone for line in table.lines] == ["suspect", "student", "suspect", "student", "removed"]


def test_an_undefined_share_is_said_in_words():
    rows = [("z_score_sd", "triggered", "features")]
    values = {"control": (1.0, 1.0, 1.0), "suspect": (0.5, 1.5, 1.0), "student": (1.0, 1.0, 1.0)}
    scored = [bare(arm, [(*rows[0], v)], trigger_seed=i) for arm, many in values.items() for i, v in enumerate(many)]
    (cell,) = excess_table(paired(scored)).lines[-1].cells
    assert cell[:2] == ("not defined", "no clear excess")
    assert "not defined" in headline_text(paired(scored))


def test_every_pair_is_a_line_as_wide_as_the_head(ten):
    table = pair_table(ten, "side variant")
    assert [line.label for line in table.lines if not line.cells] == ["main variant", "side variant fraction_0.5"]
    assert len(table.lines) == 2 + 20
    assert {1 + len(line.cells) for line in table.lines if line.cells} == {len(table.columns)}


def test_terminal_table_is_aligned_and_fits(ten):
    lines = headline_text(ten).splitlines()
    assert max(map(len, lines)) <= 100
    values = [line for line in lines if line.startswith(("clean-trained", "poisoned", "removed"))]
    assert len(values) == 5
    assert {len(line) for line in values} == {max(map(len, lines))}
