"""The page of an inspection: self-contained, whole or not there, and all that is foreign escaped."""

import json
import os
import re

import numpy as np
import pytest

from flows.commands.inspect import dataset_of, inspect, render
from ssl_backdoor.data.inspection import Inspection, inspect_data
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.report.inspection import contact_sheet, sentences, write_inspection
from ssl_backdoor.specs import DatasetSpec
from tasks.planner import Sources
from tests.unit.data.picture_files import picture, write_folder, write_tar

EVIL = '<script>alert("x")</script>&$\\frac{1}{0}$\u202egnp\x1b[31m'
STYLE_ONLY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.fixture
def evil(tmp_path) -> Inspection:
    """Every name and caption that can be chosen by a stranger is."""
    name = "<img src=x onerror=alert(1)>\u202e"
    files = {"0.png": picture(0), "0.txt": EVIL.encode(), "0.json": json.dumps({"label": name}).encode()}
    files |= {"1.png": b"no picture", "1.txt": b"a <b>cat</b>", "2.png": picture(0), "2.txt": EVIL.encode()}
    spec = DatasetSpec(max_rejected_frac=1.0)
    return inspect_data(spec, str(write_tar(tmp_path / "train-<u>0.tar", files)))


def test_foreign_text_is_shown_and_never_run(evil, tmp_path):
    files = write_inspection(evil, "<h1>mine\u202e\x07", tmp_path / "out")
    page = (tmp_path / "out" / "inspection.html").read_text(encoding="utf-8")
    assert STYLE_ONLY in page
    tags = set(re.findall(r"<([a-z0-9]+)", page.partition("<body>")[2]))
    assert not tags & {"script", "b" + "ase", "iframe", "object", "link", "form", "u"}
    assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", page)
    assert "&lt;h1&gt;mine" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", page)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert sorted(os.listdir(tmp_path / "out")) == ["contact_sheet.png", "inspection.html", "inspection.json"]
    assert json.loads((tmp_path / "out" / "inspection.json").read_text(encoding="utf-8"))["num_images"] == 2
    assert (tmp_path / "out" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert set(files) == {"page", "contact_sheet", "facts"}


def test_a_write_that_fails_leaves_the_page_of_before(evil, tmp_path, monkeypatch):
    write_inspection(evil, "first", tmp_path)
    before = (tmp_path / "inspection.html").read_bytes()

    def refuse(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(KeyboardInterrupt):
        write_inspection(evil, "second", tmp_path)
    assert (tmp_path / "inspection.html").read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_sentences_hold_no_control_characters(evil):
    assert all(line.isprintable() for line in sentences(evil))


def test_without_an_image_there_is_no_sheet(evil, tmp_path):
    assert contact_sheet(()) is None
    none = inspect_data(DatasetSpec(), str(write_folder(tmp_path / "set", {"cat/0.png": b"x", "dog/0.png": b"x"})))
    assert set(write_inspection(none, "none", tmp_path / "out")) == {"page", "facts"}
    assert "2 rejected" in " ".join(sentences(none))
    assert contact_sheet(evil.sheet).png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("files", "doubt"),
    [
        ({"cat/0.png": 0, "dog/0.png": 1}, "have no test images"),
        ({"train/cat/0.png": 0, "train/dog/0.png": 1, "test/0.png": 2}, "none of the 1 test images has a class"),
        (
            {"train/cat/0.png": 0, "train/dog/0.png": 1, "test/cat/0.png": 0, "test/dog/0.png": 2},
            "1 test images are training images too",
        ),
        ({"train/cat/0.png": 0, "train/dog/0.png": 1, "test/cat/0.png": 3, "test/dog/0.png": 2}, ""),
    ],
)
def test_what_would_stop_or_spoil_a_run_is_asked_about(files, doubt, tmp_path):
    data = write_folder(tmp_path / "set", {name: picture(seed) for name, seed in files.items()})
    found = inspect([], Sources(str(data)), tmp_path / "out")
    assert [doubt in text for text in found["questions"]] == [True] * bool(doubt)
    lines = list(render(found))
    assert any(line.startswith("  cat: ") for line in lines)
    (page,) = (tmp_path / "out").glob("set-*/inspection.html")
    assert f"page: {page}" in lines
    assert json.dumps(found, allow_nan=False)


def test_settings_are_those_of_the_dataset():
    assert dataset_of(["dataset.frame_px=16", 'dataset.classes=["cat"]']) == DatasetSpec(frame_px=16, classes=("cat",))
    assert dataset_of([], has_test_data=True).test_source.kind == "files"
    with pytest.raises(SpecError, match=r"--set takes dataset\.\*"):
        dataset_of(["train.fit.epochs=3"])
    with pytest.raises(SpecError, match="frame_px"):
        dataset_of(["dataset.frame_pz=16"])


def test_data_that_cannot_be_used_leave_no_folder(tmp_path):
    with pytest.raises(DataError, match="there is nothing at"):
        inspect([], Sources(str(tmp_path / "nowhere")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sheet_of_captions_in_any_script_is_drawn(evil):
    odd = [one._replace(caption=text, class_name=text) for one in evil.sheet for text in ("東京" * 90, "", "\n$x^2$\n")]
    assert np.all([contact_sheet(odd[:count]).png for count in (1, 7)])
