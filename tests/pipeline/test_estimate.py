"""``ssl-backdoor estimate``: the counts are those of a run, and it looks only."""

import json

import pytest
from test_bad_input import (
    SETTINGS,
    empty_folder,
    escaping_member,
    fraction_above_one,
    missing_path,
    tree,
    truncated_tar,
    unknown_class,
    unknown_field,
    unknown_target,
)

from tests.support.command_server import TINY, refused_input

pytestmark = [pytest.mark.services, pytest.mark.slow]
BYOL = {"ingest": 1, "poison": 1, "train": 2, "defend": 2, "evaluate": 4, "report": 1}
ALL = {"ingest": 1, "poison": 3, "train": 5, "defend": 4, "evaluate": 10, "report": 1}


def counted(told, name):
    return {stage: one[name] for stage, one in told["stages"].items() if one["count"]}


def test_of_an_empty_store_every_stage_is_to_be_done(lab, tmp_path):
    run, _ = lab
    arguments = ("estimate", "demo", *TINY, "--methods", "byol", "--store", tmp_path / "store", "--devices", "3")
    outcome = run(*arguments, "--seconds", "5", "--json")
    assert outcome.code == 0, outcome.stderr
    told = json.loads(outcome.stdout)
    assert (told["recipe"], told["runs"], told["devices"]) == ("demo", 1, 3)
    assert counted(told, "count") == BYOL
    assert counted(told, "there") == dict.fromkeys(BYOL, 0)
    assert all(one["seconds"] > 0 and one["bytes"] > 0 for one in told["stages"].values() if one["count"])
    device_s = sum(told["stages"][stage]["seconds"] for stage in ("train", "defend", "evaluate"))
    assert told["device_hours"] == pytest.approx(device_s / 3600, abs=1e-3)
    # An encoder is trained, defended and evaluated one after the other, whatever the number of devices.
    assert device_s / 3 <= told["wall_parts_s"]["devices"] < device_s
    assert told["wall_s"] == pytest.approx(sum(told["wall_parts_s"].values()), abs=0.5)
    assert told["calibration"]["kinds"] == 5  # one of each stage but the report
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_what_the_store_holds_costs_nothing(lab, experiment):
    run, _ = lab
    outcome = run("estimate", "demo", *TINY, "--json")
    assert outcome.code == 0, outcome.stderr
    told = json.loads(outcome.stdout)
    assert counted(told, "count") == counted(told, "there") == ALL
    assert all(one["seconds"] == one["bytes"] == 0 for one in told["stages"].values())
    assert told["device_hours"] == told["wall_parts_s"]["devices"] == 0
    table = run("estimate", "demo", *TINY)
    assert table.code == 0, table.stderr
    lines = table.stdout.splitlines()
    assert lines[0].startswith("demo: 3 runs, artifacts in file://")
    assert [line.split()[:3] for line in lines[3:10]] == [
        *([stage, str(count), str(count)] for stage, count in ALL.items()),
        ["all", "24", "24"],
    ]
    assert any(line.startswith("wall-clock:") for line in lines)


CASES = [
    missing_path,
    empty_folder,
    truncated_tar,
    escaping_member,
    unknown_class,
    unknown_target,
    fraction_above_one,
    unknown_field,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_refused_as_by_a_run(lab, tmp_path, case):
    run, _ = lab
    arguments, expected = case(tmp_path)
    store = tmp_path / "store"
    outcome = run("estimate", "cifar10_byol", *SETTINGS, "--store", store, *arguments)
    assert expected in refused_input(outcome, store)


def test_more_that_cannot_be_meant_is_refused(lab, tmp_path):
    run, _ = lab
    store, data = tmp_path / "store", str(tree(tmp_path / "images"))
    for arguments, expected in (
        ((), "needs --data PATH"),
        (("--images", "5000", "5000", "--data", data), "--images is for data that are not there yet"),
        (("--data", data), "one batch needs 64 images, but there are only 16"),
        (("--images", "20", "20"), "one batch needs 64 images, but there are only 20"),
    ):
        outcome = run(
            "estimate", "cifar10_byol", *(SETTINGS if data in arguments else ()), "--store", store, *arguments
        )
        assert expected in refused_input(outcome, store)
    assert run("estimate", "demo", "--devices", "0").code == 2
