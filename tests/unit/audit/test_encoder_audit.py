"""An audit of tiny encoders from end to end, in this process; what is refused; what a hostile file leads to."""

import json
import os
import pickle
import socket
import time
from pathlib import Path

import pytest
import torch

from flows.commands.audit import audit
from flows.terminal.arguments import parse
from ssl_backdoor.audit import encoder, quarantine, subjects, work
from ssl_backdoor.audit.quarantine import Refusal, answer_to
from ssl_backdoor.encoders import Encoder, FrameSpec, adopt
from ssl_backdoor.errors import SpecError, UserError
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.specs import ResNetSpec
from ssl_backdoor.store import open_store
from ssl_backdoor.tampering import spike_in
from tests.support.tiny_sets import tiny_dataset

TINY = ResNetSpec(depth=8, width=4, stem="small")


def _kept(store, seed: int, spec: ResNetSpec = TINY) -> str:
    torch_seeded = build_backbone(spec, 1, seed)
    ref = adopt(Encoder(f"tiny {seed}", torch_seeded, FrameSpec(size_px=16, resize_px=16)), store)
    return f"train/{ref.key}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A hundred images in one folder, without classes."""
    folder = tmp_path_factory.mktemp("images")
    dataset = tiny_dataset(
        tmp_path_factory.mktemp("tiny"), train_per_class=36, test_per_class=1, size=(16, 16), separable=True
    )
    rows = dataset.samples
    for key, data in zip(rows["key"].to_pylist(), dataset.read(rows), strict=True):
        (folder / f"{key}.png").write_bytes(data)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Everything at a toy's size, in this process."""
    monkeypatch.setattr(encoder, "EFFORTS", ((1, 3), (1, 2)))
    monkeypatch.setattr(encoder, "AREAS", (0.10, 0.02))
    monkeypatch.setattr(encoder, "COPIES", 1)
    monkeypatch.setattr(spike_in, "FIT", spike_in.FIT.model_copy(update={"epochs": 1, "batch_size": 16}))

    def here(jobs, store, deadline, on_done):
        done = {}
        for job in jobs:
            if time.monotonic() < deadline:
                done[job.name] = work._do(job.calls, store)
                on_done(job.name, len(done), len(jobs))
        return done

    monkeypatch.setattr(encoder, "perform", here)


def _audit(tmp_path, *arguments: str) -> dict:
    options = parse(["audit", "encoder", *arguments], {"audit": lambda _: 0})
    return audit(options, str(tmp_path / "store"), tmp_path / "out")


def test_an_audit_says_what_it_found_and_what_it_could_have_found(tmp_path, images, quick):
    store = open_store(str(tmp_path / "store"))
    subject, *others = (_kept(store, seed) for seed in range(4))
    asked = [subject, "--images", str(images), "--siblings", *others, "--trigger", "grid", "--rate", "0.25"]
    found = _audit(tmp_path, *asked)
    assert found["verdict"]["kind"] in ("evidence", "no evidence")
    assert (len(found["siblings"]), found["p_value"] in (0.25, 0.5, 0.75, 1.0)) == (3, True)
    assert found["images"]["num_test"] >= 50
    assert "artifact of the store" in found["loading"]["network"]
    assert {round(one["area"], 3) for one in found["planted"]} == {0.098, 0.016}
    assert any("the suspected trigger" in line for line in found["others"])
    assert any("are recommended" in line for line in found["limits"])
    page = Path(found["files"]["page"]).read_text()
    for part in ("Verdict", "OWASP AISVS", "What would have been found", "Limits", found["verdict"]["sentence"][:20]):
        assert part in page
    twin = json.loads(Path(found["files"]["facts"]).read_text())
    assert twin["verdict"] == found["verdict"]
    again = _audit(tmp_path, *asked)
    assert again["score"] == found["score"]
    if "predictions" in found["files"]:
        (label,) = json.loads(Path(found["files"]["predictions"]).read_text()).values()
        assert label == (found["verdict"]["kind"] == "evidence")
        assert torch.load(found["files"]["embedding"], weights_only=True).norm() == pytest.approx(1.0)


def test_without_siblings_there_is_no_p_value_and_without_time_no_verdict(tmp_path, images, quick):
    subject = _kept(open_store(str(tmp_path / "store")), 0)
    found = _audit(tmp_path, subject, "--images", str(images))
    assert (found["verdict"]["kind"], found["p_value"]) == ("no p-value", None)
    short = _audit(tmp_path, subject, "--images", str(images), "--budget", "0.0001", "--seed", "1")
    assert short["verdict"]["kind"] == "unfinished"
    assert any("not done within the budget" in line for line in short["left_out"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train/ffff", "--images", "x"], "expected one train artifact whose key begins with 'ffff'"),
        (["SUBJECT"], "the following arguments are required: --images"),
        (["SUBJECT", "--images", "IMAGES", "--budget", "0"], "expected a number of minutes above 0, found '0'"),
        (["SUBJECT", "--images", "IMAGES", "--rate", "5"], "expected a false-positive rate between 0 and 1, found '5'"),
        (["SUBJECT", "--images", "nowhere"], "nowhere"),
        (["SUBJECT", "--images", "IMAGES", "--siblings", "SUBJECT"], "which is the encoder under audit; leave it out"),
        (["SUBJECT", "--images", "IMAGES", "--siblings", "OTHER", "OTHER"], "expected different encoders as siblings"),
        (["SUBJECT", "--images", "IMAGES", "--siblings", "WIDER"], "expected siblings of the same architecture"),
        (["SUBJECT", "--images", "IMAGES", "--trigger", "spell"], "--trigger expects a picture's file or a kind of"),
        (["SUBJECT", "--images", "FEW"], "needs 4 images or more"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(tmp_path, images, quick, arguments, says):
    store = open_store(str(tmp_path / "store"))
    few = tmp_path / "few"
    few.mkdir()
    for name in sorted(os.listdir(images))[:3]:
        (few / name).write_bytes((images / name).read_bytes())
    known = {
        "SUBJECT": _kept(store, 0), "OTHER": _kept(store, 1), "IMAGES": str(images), "FEW": str(few),
        "WIDER": _kept(store, 0, TINY.model_copy(update={"width": 8})),
    }  # fmt: skip
    with pytest.raises(UserError) as raised:
        _audit(tmp_path, *(known.get(one, one) for one in arguments))
    text = str(raised.value)
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "data", "kind", "says"),
    [
        ("pickle.pt", pickle.dumps({"weight": [1.0]}), "file", "is a pickle, which could run code"),
        ("text.safetensors", b"no weights at all", "file", "not a whole safetensors or torch file"),
        (None, b"", "mistake", "found none"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_a_finding(tmp_path, name, data, kind, says):
    file = tmp_path / (name or "absent.pt")
    if name:
        file.write_bytes(data)
    text = f"torchvision/resnet18:{file}"
    found = answer_to({"text": text, "said": {}, "store": str(tmp_path / "store")}, "none")
    assert found["kind"] == kind
    assert says in found["reason"]
    if name:
        facts = subjects.file_facts(file)
        assert (facts["bytes"], len(facts["sha256"])) == (len(data), 64)
        assert quarantine.files_of(text) == (file,)


@pytest.mark.slow
def test_code_that_kills_its_process_and_code_that_calls_home_end_as_findings(tmp_path):
    listening = socket.create_server(("127.0.0.1", 0))  # whoever has a network gets through
    port = listening.getsockname()[1]
    file = tmp_path / "hostile.py"
    file.write_text(
        "import os, socket\n"
        "def kills():\n    os.kill(os.getpid(), 9)\n"
        f"def calls():\n    socket.create_connection(('127.0.0.1', {port}), timeout=2)\n"
    )
    for function, kind, says in (("kills", "killed", "SIGKILL"), ("calls", "mistake", "Error")):
        scratch = tmp_path / function
        scratch.mkdir()
        found = quarantine.load_apart(f"{file}:{function}", {}, open_store(str(tmp_path / "store")), scratch)
        assert isinstance(found, Refusal)
        assert found.kind == kind
        assert says in found.reason
    listening.close()


def test_siblings_of_the_store_are_the_other_seeds_of_the_same_training(tmp_path):
    store = open_store(str(tmp_path / "store"))

    def kept(key, seed, **inputs):
        folder = tmp_path / key
        folder.mkdir()
        (folder / "x").write_text(key)
        spec = {"train": {"method": "byol"}, "seed": seed}
        return store.commit("train", key, folder, spec=spec, inputs={"dataset": "d"} | inputs, summary={}, seconds=0.0)

    first = kept("a1", 0)
    kept("a2", 1)
    kept("a3", 2, poison="p")
    kept("a4", 3, dataset="other")
    subject = subjects.Subject("train/a1", first, FrameSpec(), TINY, {})
    assert list(subjects._of_store(subject, store)) == ["train/a2"]


def test_a_searched_area_without_siblings_raises_no_error():
    with pytest.raises(SpecError):
        encoder._found(
            encoder.Asked("x", "y"), None, [], None, {encoder.ENCODER: work.Done(None, 0.0, "too few images")}, None
        )
