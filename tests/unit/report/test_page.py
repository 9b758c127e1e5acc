import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from report_fakes import CLASSES, NO_PREDICTIONS, bare, examples, one_pair, report_spec, ten_pairs

from ssl_backdoor.report.frame import FRAME
from ssl_backdoor.report.page import markdown, write_report

pytestmark = pytest.mark.slow  # drawing the figures of a page takes seconds

HOSTILE = "<script>alert(1)</script>|`$x_{$ *b* \U0001f600\n# h"
SUMMARY = {
    "num_poisons": 10,
    "poison_fraction_of_target": 1.0,
    "poison_fraction_of_dataset": 0.2,
    "target_class": "cat",
}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def count(self, name):
        return sum(tag == name for tag, _ in self.tags)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    scored = ten_pairs(out, num_test=500)
    spec = report_spec(scored)
    summary = write_report(spec, scored, examples(["13 / cat"]), {"13 / cat": SUMMARY}, out, {"train": 240.1})
    return out, spec, summary


def test_all_files_are_there(written):
    out, _, _ = written
    assert {"report.html", "report.md", "table.tex", "measurements.parquet", "measurements.json", "figures"} <= {
        file.name for file in out.iterdir()
    }
    names = {"poisons", "before_after", "false_positives", "landing", "embedding", "confusion", "loss_curves"}
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".csv", b"encoder,")):
        files = [file for file in (out / "figures").iterdir() if file.suffix == suffix]
        assert {file.stem for file in files} == (names if suffix != ".csv" else {"leaderboard"})
        assert all(file.read_bytes().startswith(start) for file in files)


def test_the_page_is_self_contained(written):
    out, _, _ = written
    page = Page((out / "report.html").read_text())
    assert page.count("script") == 0
    assert page.count("link") == 0
    assert page.count("img") == 7
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in page.tags if tag == "img")
    assert all(attrs["href"].startswith("#") for tag, attrs in page.tags if tag == "a")
    policy = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    anchors = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert anchors <= {attrs["id"] for _, attrs in page.tags if "id" in attrs}


def test_the_content_stands_in_order(written):
    out, _, summary = written
    marks = [
        "Attack: cannot tell (10 pairs, 1 control)",
        "If every unlabelled image",
        "Read this first",
        "Results vary widely across pairs",
        '"recipe"',
        "@inproceedings{saha2022",
        "To copy into published tables",
        "Excess over the control",
        "Example poisons",
        "trigger / target",
        "measurements.parquet",
        "Every claim is a difference",
        "stage train",
    ]
    for text in (Page((out / "report.html").read_text()).text, (out / "report.md").read_text()):
        places = [text.index(mark) for mark in marks]
        assert places == sorted(places)
        assert "n = 10" in text
        assert "fraction_0.5" in text.replace("\\_", "_")
    text = (out / "report.md").read_text().replace("\\", "")
    assert all(f"- {line}" in text for line in (*summary["answer"].splitlines(), *summary["details"]))


def test_the_twin_shows_every_figure_by_a_relative_path(written):
    out, _, _ = written
    shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (out / "report.md").read_text())
    assert len(shown) == 7
    assert all((out / path).is_file() for path in shown)


def test_the_summary_holds_the_key_numbers(written):
    _, spec, summary = written
    assert summary["question"] == spec.question
    assert summary["headline"]["target_false_positives_excess/suspect/triggered/knn"] > 0
    assert summary["headline"]["target_false_positives_specific_excess/suspect/triggered/knn"] is not None
    assert not any("removed_frac" in name for name in summary["headline"])  # all pairs share one clean-trained encoder
    json.dumps(summary, allow_nan=False)


def test_the_numbers_survive_both_files(written):
    out, _, _ = written
    table = pq.read_table(out / "measurements.parquet")
    assert table.schema.equals(FRAME)
    frame = table.to_pandas()
    records = {
        (one["name"], one["arm"], one["condition"], one["probe"]): one
        for one in json.loads((out / "measurements.json").read_text())
    }
    here = (frame.variant == "") & (frame.trained_on == "poisoned") & (frame.defence == "")
    here &= (frame.metric == "accuracy") & (frame.condition == "clean") & (frame.probe == "linear_10")
    for statistic, name in (("value", "accuracy"), ("excess", "accuracy_excess")):
        values = frame[here & (frame.statistic == statistic)].value
        assert len(values) == 10
        assert values.mean() == pytest.approx(records[name, "suspect", "clean", "linear_10"]["value"])


def test_hostile_text_is_shown_and_never_run(tmp_path):
    classes = (HOSTILE, *CLASSES[:4])
    scored = one_pair(tmp_path, num_test=500, classes=classes, target=HOSTILE, top=HOSTILE, variant="")
    spec = report_spec(scored, recipe=HOSTILE, question=HOSTILE, note=HOSTILE)
    write_report(spec, scored, examples([HOSTILE]), {HOSTILE: SUMMARY | {"target_class": HOSTILE}}, tmp_path)
    html, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    page = Page(html)
    assert page.count("script") == 0
    assert page.count("h1") == 1
    assert "<script>alert(1)" in page.text
    assert "<script" not in text
    heads = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| **")]
    assert heads
    table_lines = [line for line in text.splitlines() if line.startswith(("| **clean-trained**", "| **poisoned**"))]
    assert len({line.count("|") for line in table_lines}) == 1
    assert not [line for line in text.splitlines() if line.startswith("# h")]


def test_markdown_escapes_what_has_a_meaning_there():
    assert markdown("a|b\n# c <i> `d` [e](f) *g*") == r"a\|b \# c &lt;i&gt; \`d\` \[e\](f) \*g\*"


def test_a_run_with_nothing_to_draw_still_gives_a_page(tmp_path):
    scored = [bare("control", [("accuracy", "clean", "knn", 0.5)])]
    assert scored[0].predictions is NO_PREDICTIONS
    summary = write_report(report_spec(scored, runs=(scored[0].run,)), scored, [], {}, tmp_path)
    assert summary["answer"].startswith("There is no answer")
    assert Page((tmp_path / "report.html").read_text()).count("img") == 0


def test_one_pair_has_no_landing_figure_and_the_same_bytes_twice(tmp_path):
    scored = one_pair(num_test=200)
    pages = []
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        write_report(report_spec(scored), scored, examples(["x"]), {}, out)
        pages.append((out / "report.html").read_bytes())
    assert pages[0] == pages[1]
    names = {"poisons", "before_after", "false_positives", "confusion", "loss_curves"}
    assert {file.stem for file in (out / "figures").iterdir()} == {*names, "leaderboard"}
    for file in (out / "figures").iterdir():
        assert file.read_bytes() == (tmp_path / "a" / "figures" / file.name).read_bytes()


def test_the_report_never_imports_torch():
    code = "import sys, ssl_backdoor.report.page; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
