"""An audit of images: ranks without a trusted part, q-values with one, and a training without what was found."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ssl_backdoor as sb
from flows.commands.audit import audit
from flows.terminal.arguments import parse
from ssl_backdoor.encoders import Encoder, FrameSpec, adopt
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import ResNetSpec
from ssl_backdoor.store import open_store
from tests.support.tiny_training import train_spec


def _photographs(folder, names, quality=90):
    folder.mkdir(exist_ok=True)
    for name in names:
        pixels = stream(0, "photograph", name).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=quality)
    return folder


@pytest.fixture
def folders(tmp_path):
    """60 photographs, five of which somebody saved otherwise, and 100 that are trusted."""
    data = _photographs(tmp_path / "data", [f"photo-{n}" for n in range(55)])
    _photographs(data, [f"poison-{n}" for n in range(5)], quality=30)
    return data, _photographs(tmp_path / "trusted", [f"trusted-{n}" for n in range(100)])


def _audit(tmp_path, *arguments):
    options = parse(["audit", "data", *map(str, arguments)], {"audit": lambda _: 0})
    return audit(options, str(tmp_path / "store"), tmp_path / "out")


def test_without_a_trusted_part_there_are_ranks_alone(tmp_path, folders):
    found = _audit(tmp_path, folders[0])
    assert found["text"][0].startswith("ranks only: without a trusted part (--trusted) no error rate can be given")
    assert "excluded" not in found["files"]
    scores = pq.read_table(found["files"]["scores"])
    assert {key[:6] for key in scores["key"][:5].to_pylist()} == {"poison"}
    assert scores["p_value"].null_count == 60


def test_with_one_the_planted_are_left_out_and_training_goes_on_without_them(tmp_path, folders):
    store = open_store(str(tmp_path / "store"))
    backbone = build_backbone(ResNetSpec(depth=8, width=4, stem="small"), 1, 0)
    encoder = adopt(Encoder("tiny", backbone, FrameSpec(size_px=16, resize_px=16)), store)
    found = _audit(tmp_path, folders[0], "--trusted", folders[1], "--encoder", f"train/{encoder.key}", "--rate", "0.5")
    assert found["filters"] == [
        "duplicates", "file_signals", "local_density", "activation_clustering", "spectral_signatures",
    ]  # fmt: skip
    excluded = pq.read_table(found["files"]["excluded"])
    assert {key for key in excluded["key"].to_pylist() if key.startswith("poison")} == {f"poison-{n}" for n in range(5)}
    assert set(excluded["reason"].to_pylist()) <= set(found["filters"])
    stage, _, key = found["excluded"].partition("/")
    left_out = store.ref(stage, key)
    assert store.manifest(left_out).summary["num_left_out"] == len(excluded) == found["num_excluded"]
    images = store.ref("ingest", found["artifact"].partition("/")[2])
    spec = train_spec("byol")
    trained = sb.train(images, spec, store=store, left_out=left_out)
    assert store.manifest(trained).inputs["filter"] == left_out.key


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["nowhere"], DataError, "nowhere"),
        (["DATA", "--rate", "1"], SpecError, "expected a false-positive rate between 0 and 1, found '1'"),
        (["DATA", "--trusted", "FEW"], SpecError, "expected 20 trusted images or more, found 3"),
        (["DATA", "--encoder", "train/ffff"], SpecError, "expected one train artifact whose key begins with 'ffff'"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tmp_path, arguments, error, says):
    known = {
        "DATA": _photographs(tmp_path / "data", ["one", "two", "three", "four"]),
        "FEW": _photographs(tmp_path / "few", ["five", "six", "seven"]),
    }
    with pytest.raises(error) as raised:
        _audit(tmp_path, *(known.get(one, one) for one in arguments))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
