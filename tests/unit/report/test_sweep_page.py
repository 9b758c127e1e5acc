import csv
import dataclasses
import json
import re
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_fakes import examples, one_pair, report_spec
from sweep_fakes import (
    RATE,
    SIMILAR,
    SUCCESS,
    backdoor,
    backdoor_run,
    backdoor_sweep,
    targeted,
    targeted_run,
    targeted_sweep,
)
from test_page import HOSTILE, Page

from ssl_backdoor.defences.cleanclip import CleanCLIPSpec
from ssl_backdoor.report.estimates import SECONDS, swept
from ssl_backdoor.report.figures.bars import same_label_shares, similarity_histograms
from ssl_backdoor.report.frame import CONTROL, FRAME, SUSPECT
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.page import write_report
from ssl_backdoor.report.sections.sweep import columns_of, figure_table, figure_text
from ssl_backdoor.report.sentences import MOST_WORDS, punctuated, sweep_clauses
from ssl_backdoor.report.swept import pooled_histograms
from ssl_backdoor.report.verdicts import is_short, of_figures, verdict_lines
from ssl_backdoor.specs import FigureSpec, ReportSpec

pytestmark = pytest.mark.slow  # drawing the figures of a page takes seconds


def spec_of(scored, figures, **changes):
    runs = tuple(dict.fromkeys(one.run for one in scored))
    return ReportSpec(**({"recipe": "sweep", "question": "How many?", "runs": runs, "figures": figures} | changes))


def sweep_answer(figures, scored, over=None):
    sentences = punctuated(sweep_clauses(figures, swept(over or figures, scored)))
    assert all(is_short(sentence, MOST_WORDS) for sentence in sentences)
    return " ".join(sentences)


def sweep_verdicts(figures, scored):
    lines = verdict_lines(of_figures(figures, swept(figures, scored)))
    assert all(is_short(line) for line in lines)
    return lines


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    scored = backdoor_sweep()
    summary = write_report(spec_of(scored, (RATE, SIMILAR)), scored, [], {}, out, {"train": 100.0})
    return out, summary


def test_each_figure_comes_with_its_data(written):
    out, _ = written
    assert {file.name for file in (out / "figures").iterdir()} == {
        "rate.png", "rate.svg", "rate.csv", "similar.png", "similar.svg", "similar.csv", "leaderboard.csv",
    }  # fmt: skip
    lines = list(csv.DictReader((out / "figures/rate.csv").read_text().splitlines()))
    assert {(line["arm"], line["series"], line["num_poisons"]) for line in lines} == {
        ("control", "", "0"), ("suspect", "", "5"), ("suspect", "", "50"),
        ("student", "cleanclip", "50"), ("distilled_control", "cleanclip", "0"),
    }  # fmt: skip
    assert float(lines[0]["value"]) == pytest.approx(0.11)


def test_a_page_of_figures_alone_has_no_empty_sections(written):
    out, summary = written
    assert summary["answer"].startswith("Attack: works from 50 poisons on")
    page = Page((out / "report.html").read_text())
    anchors = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert anchors <= {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert "sweeps" in anchors
    assert not {"table", "pairs", "figures"} & anchors
    assert page.count("img") == 2
    text = (out / "report.md").read_text()
    for absent in ("Every pair", "Excess over the control", "What was poisoned", "## Figures"):
        assert absent not in page.text
        assert absent not in text
    assert all(f"- {line}" in text.replace("\\", "") for line in summary["answer"].splitlines())
    assert all((out / path).is_file() for path in re.findall(r"\]\((figures/[^)]*)\)", text))
    assert pq.read_table(out / "measurements.parquet").schema.equals(FRAME)


def test_the_numbers_are_named_by_their_place(written):
    out, summary = written
    records = json.loads((out / "measurements.json").read_text())
    places = {(record["arm"], record["condition"]) for record in records if record["name"] == "attack_success_rate"}
    assert {("control", "num_poisons=0"), ("suspect", "num_poisons=50"), ("student[cleanclip]", "num_poisons=50")} < (
        places
    )
    key = "attack_success_rate/student[cleanclip]/num_poisons=50/zero_shot"
    assert summary["headline"][key] == pytest.approx(0.21)


def test_both_papers_share_one_page(tmp_path):
    pair = one_pair(tmp_path, num_test=200)
    along = targeted_sweep()
    spec = spec_of([*pair, *along], (SUCCESS,))
    shown = [
        *(one._replace(attack="saha2022_targeted") for one in examples(["a"])),
        *(one._replace(attack="carlini2022_targeted", text="a photo of a cat", box=(-1, -1, 0, 0))
          for one in examples(["b"])),
    ]  # fmt: skip
    summary = write_report(spec, [*pair, *along], shown, {}, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    places = [page.text.index(mark) for mark in ("Attack:", "Excess over", "Each point is several models")]
    assert places == sorted(places)
    assert page.text.index("Each point is several models") < page.text.index("trigger / target")
    names = {file.stem for file in (tmp_path / "figures").iterdir()}
    assert {"poisons_saha2022_targeted", "poisons_carlini2022_targeted", "success", "confusion"} <= names
    assert summary["answer"].startswith(
        "Attack: cannot tell (1 run) for BYOL targeted; no effect found for CLIP targeted poisoning."
    )
    assert "Targeted success (zero-shot) is 8.3 % (0.4 to 68.6) without poisons." in summary["details"]


def test_the_table_shows_ours_beside_the_papers():
    rows = swept([SUCCESS], targeted_sweep())
    table = figure_table(SUCCESS, rows)
    assert [line.label for line in table.lines] == [
        "clean-trained, no poisons", "poisoned, 1 poison", "poisoned, 2 poisons", "poisoned, 4 poisons",
        "poisoned, 8 poisons",
        "paper (unverified), 3 poisons",
    ]  # fmt: skip
    assert [cell.value for cell in table.lines[-1].cells][:2] == ["40.0 %", "–"]
    assert table.lines[-2].cells[0][:3] == ("100.0 %", "36.8 to 100.0", "n = 12 in 3 models")
    assert (SECONDS, "value") in columns_of(SUCCESS, rows)
    text = figure_text(SUCCESS, rows)
    assert "poisoned, 8 poisons" in text
    assert max(len(line) for line in text.splitlines()) < 130


def test_verified_values_are_marked_as_such():
    read = SUCCESS.model_copy(update={"paper": (SUCCESS.paper[0].model_copy(update={"is_verified": True}),)})
    assert figure_table(read, swept([read], targeted_sweep())).lines[-1].label == "paper, 3 poisons"


def test_the_answer_to_targeted_poisoning():
    answer = sweep_answer([SUCCESS], targeted_sweep())
    assert "is 8.3 % (" in answer
    assert "It first reaches 50 % with 4 poisons a pair, 91.7 %" in answer
    assert "It first reaches 90 % with 4 poisons a pair" in answer
    assert "Clean accuracy (zero-shot) of poisoned with 8 poisons: +1.1 pt" in answer
    assert sweep_verdicts([SUCCESS], targeted_sweep())[-1].startswith("Clean accuracy: kept. +1.1 pt (")
    never = [one for one in targeted_sweep() if one.arm == "control" or one.run.attack.num_poisons <= 2]
    answer = sweep_answer([SUCCESS], never)
    assert "It never reaches 50 %: its highest is 41.7 %" in answer
    assert "90 %" not in answer


def test_the_answer_to_a_backdoor_and_its_defence():
    answer = sweep_answer([RATE, SIMILAR], backdoor_sweep())
    assert "is 11.0 % (8.8 to 14.0) without poisons" in answer
    assert "rising" in answer
    assert "CleanCLIP takes attack success (zero-shot) with 50 poisons to 21.0 %" in answer
    assert "Mean cosine, poisoned (50 poisons): " in answer
    lines = sweep_verdicts([RATE, SIMILAR], backdoor_sweep())
    assert lines[:2] == [
        "Attack: works from 50 poisons on.",
        "ASR at 50 poisons 88.3 % (795 of 900), control 11.0 %, unseen triggers 44.2 %.",
    ]
    assert lines[2].startswith("Defence: cannot tell (3 models, no spread)")  # after it all models have one excess
    twice = sweep_answer([RATE, RATE], backdoor_sweep(), [RATE])
    assert twice.count("takes attack success") == 2
    assert twice.count("of poisoned + CleanCLIP") == 1


def test_a_null_result_is_said_as_such():
    scored = [
        backdoor(backdoor_run(count, seed), arm, 0.1 + 0.01 * seed * sign)
        for count, sign in ((5, 1), (50, -1))
        for seed in range(3)
        for arm in ("control", "suspect")
        if arm == "suspect" or count == 5
    ]
    assert sweep_verdicts([RATE], scored)[0].startswith("Attack: cannot tell (3 models, no spread)")
    scored = [backdoor(one.run, one.arm, 0.1 + 0.02 * one.run.seed * (one.run.attack.num_poisons == 5))
              if one.arm == "suspect" else one for one in scored]  # fmt: skip
    assert sweep_verdicts([RATE], scored)[0].startswith("Attack: no effect found.")
    assert "not rising at every step" in sweep_answer([RATE], scored)


def test_one_model_is_no_evidence():
    scored = [backdoor(backdoor_run(5), "control", 0.1), backdoor(backdoor_run(5), "suspect", 0.9)]
    assert sweep_verdicts([RATE], scored)[0].startswith("Attack: cannot tell (1 run). ASR 90.0 % (810 of 900), con")
    scored = [targeted(targeted_run(5, pairs=1), "suspect", 1)]
    assert sweep_verdicts([SUCCESS], scored) == ["Attack: cannot tell (no control). Success 100.0 % (1 of 1)."]


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0.1, 0.9), ": rises with clean training images"), ((0.5, 0.51), "no significant change")],
)
def test_a_trend_is_told_only_where_intervals_part(values, expected):
    figure = FigureSpec(
        name="f", title="F", attack="carlini2022_backdoor", axis="num_train", measures=("z_score_sd/features",)
    )
    scored = [
        backdoor(backdoor_run(50, seed, train_per_class=size), "suspect", value + seed / 100, num_train=size)
        for size, value in zip((250, 500), values, strict=True)
        for seed in range(3)
    ]
    assert expected in sweep_answer([figure], scored)
    assert [line.label for line in figure_table(figure, swept([figure], scored)).lines] == [
        "poisoned, 250 images",
        "poisoned, 500 images",
    ]


def test_a_trend_is_that_of_the_excess_where_the_control_follows_the_axis_too():
    figure = FigureSpec(
        name="f", title="F", attack="carlini2022_backdoor", axis="patch_frac", measures=("z_score_sd/features",)
    )
    scored = [
        backdoor(backdoor_run(50, seed, size_frac=side), arm, value + seed / 50, patch_frac=side)
        for side, value in ((0.125, 0.1), (0.5, 0.8))
        for seed in range(3)
        for arm in ("control", "suspect")
    ]
    answer = sweep_answer([figure], scored)
    assert "minus the control's, a patch of 12.5 % of the side: +0.00." in answer
    assert "minus the control's, a patch of 50 % of the side: +0.00." in answer
    assert "rises" not in answer


def test_histograms_are_summed_over_models_and_a_control_counts_once():
    scored = backdoor_sweep()
    distinct = [dataclasses.replace(one, similarity=one.similarity.slice(0)) for one in scored]
    found = pooled_histograms(distinct)
    assert {point.x for point, _ in found if point.arm == SUSPECT} == {5, 50}
    edges, counts = found[Point("", CONTROL, 0.0), "clean"]
    table = scored[0].similarity
    one = table.filter(np.array(table["condition"]) == "clean")["num_pairs"].to_numpy()
    assert counts.tolist() == (3 * one).tolist()  # three seeds, though each control is listed three times
    assert (edges[0], edges[-1], len(edges)) == (-1.0, 1.0, 101)


def test_pairs_of_one_label_are_shares_of_the_clean_pairs_of_the_control():
    scored = []
    for one in backdoor_sweep():
        clean = one.similarity.filter(np.array(one.similarity["condition"]) == "clean")
        same = clean.set_column(0, "condition", [["clean_same_label"] * clean.num_rows])
        same = same.set_column(3, "num_pairs", [np.array(clean["num_pairs"]) // 2])
        scored.append(dataclasses.replace(one, similarity=pa.concat_tables([one.similarity, same])))
    figure = SIMILAR.model_copy(update={"axis": "same_label", "paper": ()})
    picture = same_label_shares(figure, scored)
    header, *lines = picture.data.strip().splitlines()
    assert header == "series,low,high,num_pairs,num_same_label"
    pairs = [tuple(map(int, line.split(",")[-2:])) for line in lines]
    assert pairs
    assert all(total >= 100 and abs(2 * same - total) <= 3 for total, same in pairs)
    assert same_label_shares(figure, backdoor_sweep()) is None  # measured before there were such pairs
    assert "clean_same_label" not in similarity_histograms(SIMILAR, scored).data


def test_hostile_names_are_shown_and_never_run(tmp_path):
    scored = [
        dataclasses.replace(one, run=one.run.model_copy(update={"variant": HOSTILE if one.run.variant else ""}))
        for one in backdoor_sweep()
    ]
    figure = RATE.model_copy(update={"title": HOSTILE})
    write_report(spec_of(scored, (figure, SIMILAR)), scored, [], {}, tmp_path)
    page, text = Page((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()
    assert page.count("script") == 0
    assert "<script>alert(1)" in page.text
    assert "<script" not in text
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        assert not is_table or len({line.count("|") - line.count("\\|") for line in lines}) == 1


def test_a_figure_without_data_leaves_its_table_out(tmp_path):
    scored = one_pair(num_test=100)
    summary = write_report(report_spec(scored, figures=(SUCCESS, SIMILAR)), scored, [], {}, tmp_path)
    assert [file.name for file in (tmp_path / "figures").glob("*.csv")] == ["leaderboard.csv"]
    assert summary["answer"].startswith("Attack: cannot tell (1 run)")
    for text in ((tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()):
        assert "Along an axis" not in text


@pytest.mark.parametrize(
    ("left", "verdict"), [(0.11, "removes it"), (0.4, "removes part of it"), (0.93, "removes nothing")]
)
def test_the_verdict_on_a_defence_along_an_axis_is_by_intervals_that_part(left, verdict):
    scored = []
    for seed in range(4):
        run = backdoor_run(50, seed, "", CleanCLIPSpec())
        shift = (seed % 2) / 100
        scored.append(backdoor(run, "control", 0.1 + seed / 500))
        scored.append(backdoor(run, "suspect", 0.9 + shift))
        scored.append(backdoor(run, "student", left + seed / 400))
    lines = sweep_verdicts([RATE], scored)
    assert lines[1].startswith(f"Defence: {verdict}. ASR {100 * left:.0f}.")
