"""A matrix through the real flow: shared stages once, a failed cell leaves the others, a rerun does what is missing."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_backdoor.seeds import stream

pytestmark = pytest.mark.services
TINY_MATRIX = tuple(
    part
    for setting in (
        'dataset.classes=["cat","dog"]',
        "attack.target_class=cat",
        "train.fit.epochs=1",
        "train.fit.batch_size=8",
        "train.fit.bn_groups=1",
    )
    for part in ("--set", setting)
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """32 training and 16 test images of noise."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 16), ("test", 8)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = stream(index, split, name).integers(0, 256, (16, 16, 3)).astype(np.uint8)
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "PNG")
                (folder / split / name / f"{index}.png").write_bytes(data.getvalue())
    return folder


def trained(store: Path) -> set[str]:
    return {path.parent.name for path in store.glob("train/*/manifest.json")}


def test_a_failed_cell_leaves_the_others_and_a_rerun_does_only_what_is_missing(lab, images, tmp_path):
    run, _ = lab
    store = tmp_path / "store"
    command = ("run", "saha2022_table1", "--data", images, "--pairs", "1", "--seeds", "2", "--json", "--store", store)
    failed = run(*command, *TINY_MATRIX, "--methods", "byol,simclr", "--set", "train.method.temperature=1e-42")
    assert failed.code == 1, failed
    result = json.loads(failed.stdout)
    assert len(result["missing"]) == 2, result["missing"]
    assert all("SimCLR" in cell and "loss" in cell for cell in result["missing"]), result["missing"]
    assert {cell["train"]["method"]["kind"] for cell in result["runs"]} == {"byol"}
    assert "SimCLR" in Path(result["artifacts"]["report"]).read_text()
    first = trained(store)
    assert len(first) == 4  # two seeds of a control and a suspect

    whole = run(*command, *TINY_MATRIX, "--methods", "byol,simclr")
    assert whole.code == 0, whole
    result = json.loads(whole.stdout)
    assert result["missing"] == []
    assert {cell["train"]["method"]["kind"] for cell in result["runs"]} == {"byol", "simclr"}
    assert first < trained(store)
    assert len(trained(store)) == 8
    excess = [row for row in result["measurements"] if row["name"] == "target_false_positives_excess"]
    assert {(row["variant"], row["n"]) for row in excess} == {("BYOL", 2), ("SimCLR", 2)}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--methods", "bjol"), "bjol"),
        (("--methods", ""), "byol"),
        (("--seeds", "1000"), "--yes"),
        (("--methods", "jigsaw", "--set", "train.fit.views.size_px=12"), "18 px"),
        (("--methods", "mae", "--set", "train.fit.views.size_px=18"), "multiple of patch_px"),
        (("--methods", "moco_v2", "--set", "train.fit.batch_size=2"), "bn_groups"),
        (("--set", "attack.target_class=horse"), "horse"),
    ],
)
def test_one_sentence_about_a_matrix(lab, images, tmp_path, arguments, expected):
    run, _ = lab
    settings = () if "attack.target_class=horse" not in arguments else TINY_MATRIX[:2]
    outcome = run("run", "saha2022_table1", "--data", images, "--store", tmp_path / "store", *settings, *arguments)
    assert outcome.code == 2, outcome
    *facts, sentence = outcome.stderr.splitlines()
    assert all(" ingest (ingest/" in fact for fact in facts), outcome.stderr  # how the data were understood
    assert expected in sentence
    assert not list(tmp_path.glob("store/train/*"))


def test_probes_on_another_set_need_one(lab, images, tmp_path):
    run, _ = lab
    command = ("run", "saha2022_transfer", "--data", images, "--pairs", "1", "--seeds", "1", "--store", tmp_path / "s")
    refused = run(*command, *TINY_MATRIX, "--methods", "byol")
    assert refused.code == 2, refused
    assert "--probe-data" in refused.stderr
    outcome = run(*command, *TINY_MATRIX, "--methods", "byol", "--probe-data", images, "--json")
    assert outcome.code == 0, outcome
    result = json.loads(outcome.stdout)
    assert not any("target_false_positives" in row["name"] for row in result["measurements"])
    assert any(row["name"] == "top_class_share" for row in result["measurements"])
