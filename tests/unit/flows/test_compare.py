"""``ssl-backdoor compare``: which reports it takes, from which store, and what it says of others."""

import json
from pathlib import Path

import pandas as pd
import pytest

from flows.commands.compare import compare, render
from ssl_backdoor.errors import SpecError, StoreError
from ssl_backdoor.identity import canonical
from ssl_backdoor.report.frame import FRAME
from ssl_backdoor.specs import ReportSpec
from ssl_backdoor.store import open_store

ROW = {
    "recipe": "r", "variant": "", "arm": "suspect", "trained_on": "poisoned", "dataset": "{}", "method": "byol",
    "backbone": "resnet", "attack": "toy", "pair": "1 / cat", "trigger": "{}", "target": "cat", "num_poisons": 5.0,
    "condition": "triggered", "probe": "knn", "metric": "attack_success_rate", "statistic": "value", "n": 100,
}  # fmt: skip


def commit(root: Path, key: str, value: float, name: str = "measurements.parquet", **changes: object) -> None:
    folder = root.parent / f"files-{key}"
    folder.mkdir()
    rows = [ROW | {"run": 0, "seed": seed, "value": value + seed / 100} for seed in range(3)]
    pd.DataFrame(rows).reindex(columns=FRAME.names).to_parquet(folder / name)
    spec = canonical(ReportSpec(recipe="r", question="?", runs=())) | changes
    open_store(str(root)).commit(
        "report", key, folder, spec=spec, inputs={}, summary={"answer": f"Attack: {key}."}, seconds=1.0
    )


def test_reports_of_two_stores_are_joined(tmp_path: Path) -> None:
    commit(tmp_path / "a", "aa", 0.8)
    commit(tmp_path / "b", "bb", 0.4)
    place = str(tmp_path / "a")
    found = compare(["report/a", f"{tmp_path / 'b'}/report/bb"], "report", place, tmp_path / "out")
    assert found["reports"] == ["report/aa", "report/bb"]
    text = "\n".join(render(found))
    assert "81.0 %" in text
    assert "41.0 %" in text
    assert "Attack: bb." in Path(found["files"]["html"]).read_text()
    json.dumps(found)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (["report/aa"], "expected two reports or more, found 1; name each once"),
        (["report/aa", "report/a"], "expected two reports or more, found 1; name each once"),
        (["report/aa", "train/x"], "compare takes report/KEY or URI/report/KEY, found 'train/x'"),
        (["report/aa", "nonsense"], "compare takes report/KEY or URI/report/KEY, found 'nonsense'"),
        (["report/aa", "report/zz"], "expected one report artifact whose key begins with 'zz'"),
        (["report/aa", "nowhere/report/zz"], "expected a store at 'nowhere', found no folder there"),
        (["report/aa", "report/old"], "expected measurements.parquet in report/old, found none; run that recipe again"),
    ],
)
def test_what_is_no_report_is_refused_in_one_sentence(tmp_path: Path, references: list[str], message: str) -> None:
    commit(tmp_path / "a", "aa", 0.8)
    commit(tmp_path / "a", "old", 0.8, "numbers.parquet")
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        compare(references, "report", str(tmp_path / "a"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_of_a_plug_in_that_is_not_loaded_is_compared_and_an_altered_one_named(tmp_path: Path) -> None:
    commit(tmp_path / "a", "aa", 0.8, runs=[{"attack": {"kind": "somebodys"}}])
    commit(tmp_path / "a", "bb", 0.8)
    commit(tmp_path / "a", "cc", 0.8, figures=7)
    found = compare(["report/aa", "report/bb"], "attack", str(tmp_path / "a"), tmp_path / "out")
    assert found["reports"] == ["report/aa", "report/bb"]
    with pytest.raises(StoreError, match="report/cc does not hold what a report artifact holds"):
        compare(["report/aa", "report/cc"], "attack", str(tmp_path / "a"), tmp_path / "out")
