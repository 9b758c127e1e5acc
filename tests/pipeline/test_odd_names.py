"""Classes, files and captions under names that look like formats, markup or commands go through a flow as they are."""

import json
import sqlite3
from contextlib import closing

import pyarrow.parquet as pq
import pytest

from flows.recipes import clip
from ssl_backdoor.errors import replace_control_chars
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store
from tests.support.command_server import shell
from tests.support.odd_names import ODD_NAMES, write_images, write_pairs

pytestmark = [pytest.mark.services, pytest.mark.slow]
TARGET = ODD_NAMES[-1]
SMALL = ['dataset.source={"kind":"files"}', "train.fit.epochs=1", "train.fit.batch_size=32"]
OF_BYOL = ["defences.*.trusted_fraction=0.5", "defences.*.queue_size=16"]
OF_BYOL += ["defences.*.fit.epochs=1", "defences.*.fit.batch_size=16"]


def is_plain(text: str) -> bool:
    """Whether ``text`` steers no terminal."""
    return all(line.isprintable() for line in text.splitlines())


def ingested(store: ArtifactStore, page: ArtifactRef) -> tuple[list[str], list[str]]:
    """Names of the classes, and captions, of the dataset of the report's first run."""
    poison = store.manifest(store.ref("poison", store.manifest(page).inputs["000/poison"]))
    ref = store.ref("ingest", poison.inputs["dataset"])
    captions = pq.read_table(store.fetch(ref, ["samples.parquet"]) / "samples.parquet")["caption"].to_pylist()
    return store.manifest(ref).summary["classes"], captions


def test_images_of_a_folder(tmp_path):
    data = write_images(tmp_path / "images")
    changed = [*SMALL, *OF_BYOL, f"attack.target_class={TARGET}"]
    given = [part for setting in changed for part in ("--set", setting)]
    with shell(tmp_path) as run:
        done = run("run", "demo", "--methods", "byol", "--data", data, "--json", *given)
    assert done.code == 0, done.stderr
    assert is_plain(done.stderr)
    told = json.loads(done.stdout)
    store = open_store(str(tmp_path / "home" / "store"))
    page = store.ref("report", told["artifacts"]["report_ref"].partition("/")[2])
    assert set(ingested(store, page)[0]) == set(ODD_NAMES)
    assert is_plain((store.fetch(page, ["report.md"]) / "report.md").read_text())
    with closing(sqlite3.connect(tmp_path / "home" / "prefect" / "prefect.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM task_run")]
    assert f"poison trigger 34 -> {' '.join(replace_control_chars(TARGET).split())}, seed 0" in names


def test_pairs_through_the_services(tmp_path, stack, monkeypatch):
    pairs = write_pairs(tmp_path / "pairs")
    attack = clip.backdoor(clip.MINI, model=0, pairs=1).model_copy(
        update={"target_class": ODD_NAMES[0], "num_poisons": 3}
    )
    changed = [*SMALL, 'dataset.captions={"kind":"source"}']
    asked = {"methods": "clip", "data": str(pairs), "settings": changed, "attack": attack.model_dump(mode="json")}
    run = stack.queue("experiment/demo", {**asked, "defences": []})
    ended = stack.ended(run, timeout_s=600)[0]["state"]
    assert ended["type"] == "COMPLETED", ended["message"]
    names = {one["name"] for one in stack.api("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})}
    assert any(" ".join(replace_control_chars(ODD_NAMES[0]).split()) in name for name in names)
    for name, value in stack.client_environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(stack.client_environment["SSL_BACKDOOR_STORE"])
    page = store.ref("report", ended["message"].rpartition("/")[2])
    classes, captions = ingested(store, page)
    assert set(classes) == set(ODD_NAMES)
    assert len(captions) == 32 * len(ODD_NAMES)
    assert len(set(captions)) == 24 * len(ODD_NAMES), "both splits count from 0"
    assert all(map(is_plain, captions)), "captions are cleaned by rule"
    assert any("{task run} {0. class } {" in caption for caption in captions)
