"""Several reports on one page: what is joined, and over what the intervals are."""

import csv

import pandas as pd
import pytest
from report_fakes import one_pair
from sweep_fakes import RATE, backdoor_sweep

from ssl_backdoor.errors import SpecError
from ssl_backdoor.report.compare import GROUPS, Compared, compare, join
from ssl_backdoor.report.estimates import paired, swept
from ssl_backdoor.report.frame import SUSPECT, Measure, tidy

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def reports():
    seeds = paired([one for seed in range(4) for one in one_pair(num_test=200, seed=seed)])
    axis = swept((RATE,), backdoor_sweep())
    frames = [tidy("r", found.models, found.frame) for found in (seeds, axis)]
    return [
        Compared("report/aa", "cifar10_byol", HOSTILE, frames[0]),
        Compared("report/bb", "sweep", "Attack: works.", frames[1], "pair", frozenset({RATE.attack})),
    ], (seeds, axis)


@pytest.mark.parametrize("by", GROUPS)
def test_lines_stand_by_what_was_asked_and_every_file_is_there(reports, tmp_path, by):
    compared, _ = reports
    found = compare(compared, by, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "compare.html", "compare.csv", "compare.tex", "measurements.parquet"
    }  # fmt: skip
    lines = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    values = [line[by] for line in lines]
    assert [one for at, one in enumerate(values) if at == 0 or values[at - 1] != one] == list(dict.fromkeys(values))
    assert {line["report"] for line in lines} == {"report/aa", "report/bb"} == set(found["reports"])
    page = (tmp_path / "compare.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert set(pd.read_parquet(tmp_path / "measurements.parquet").report) == {"report/aa", "report/bb"}


def test_the_numbers_and_intervals_are_those_of_each_report(reports, tmp_path):
    compared, (seeds, _) = reports
    compare(compared[:1], "report", tmp_path)
    lines = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    for name, statistic in (("attack_success_rate", "value"), ("attack_success_rate_excess", "excess")):
        (line,) = [one for one in lines if one["name"] == name and one["condition"] == "triggered"
                   and (one["trained_on"], one["defence"]) == ("poisoned", "")]  # fmt: skip
        row = seeds.get(Measure("attack_success_rate", "triggered", "linear_100"), SUSPECT, "", statistic)
        assert float(line["value"]) == pytest.approx(row.value)
        assert int(line["n"]) == row.num_units == 4
        assert (float(line["low"]), float(line["high"])) == pytest.approx((row.low, row.high), rel=0.02)


def test_what_differs_in_their_settings_stands_there_and_defences_have_their_names(reports, tmp_path):
    (one, other), _ = reports
    told = {"data": "photos", "encoders": "BYOL, 2 epochs", "made with": "torch 1", "defences": "CompRess"}
    one = one._replace(setting=told, defences={"compress": "CompRess"})
    other = other._replace(setting={"data": "photos", "encoders": "CLIP, 9 epochs", "made with": "torch 2"})
    found = compare([one, other], "report", tmp_path)
    page = (tmp_path / "compare.html").read_text()
    text = " ".join(page.split())
    for part in ("BYOL, 2 epochs", "CLIP, 9 epochs", "<dt>defences, report/bb</dt>", "What differs"):
        assert part in text
    for same in ("photos", "torch"):
        assert same not in page
    assert "poisoned + CompRess" in found["text"]
    assert "compress" not in found["text"]


def test_models_along_an_axis_are_units_of_their_own(reports, tmp_path):
    compare(reports[0][1:], "report", tmp_path)
    lines = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    rates = [line for line in lines if line["name"] == "attack_success_rate" and line["condition"] == "triggered"]
    assert {line["unit"] for line in rates} == {"model"}
    assert {line["num_poisons"] for line in rates} == {"0.0", "5.0", "50.0"}


def test_an_old_frame_and_one_without_numbers_are_refused_in_one_sentence(reports):
    one = reports[0][0]
    with pytest.raises(SpecError, match=r"expected the columns of a results frame in report/aa, found none called"):
        join([one._replace(frame=one.frame.drop(columns="statistic"))])
    with pytest.raises(SpecError, match="found no number to compare"):
        compare([one._replace(frame=one.frame[:0])], "report", one.frame)
