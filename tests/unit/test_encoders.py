"""Encoders of others: each way in, what travels with them, and what is refused; networks are small and random."""

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from flows.cli import main
from ssl_backdoor.data.resident import to_evaluated_frame
from ssl_backdoor.data.views import evaluation_view
from ssl_backdoor.encoders import Encoder, Preprocessing, adopt, load_encoder
from ssl_backdoor.errors import CheckpointError, SpecError, UserError
from ssl_backdoor.methods.build import build_backbone, num_weight_bytes
from ssl_backdoor.specs import (
    BYOLSpec,
    DatasetSpec,
    EvaluationSpec,
    ExternalSpec,
    OpenCLIPSpec,
    ResNetSpec,
    TrainSpec,
    backbone_of,
)
from ssl_backdoor.stages import DefendStage, EvaluateStage, IngestStage, StageCall, TrainStage, run_stage
from ssl_backdoor.store import ArtifactStore, open_store
from ssl_backdoor.train.checkpoint import load_backbone, save_backbone
from tests.support.tiny_training import METHODS, compress_spec, fit_spec

PX = 32
SIZED = Preprocessing(size_px=PX)
MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    size_px, interpolation = 16, "bicubic"

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 4)
        self.token = nn.Parameter(torch.ones(4))

    def forward(self, images):
        assert images.shape[1:] == (3, 16, 16) and images.min() > -1e-5 and images.max() < 1 + 1e-5
        return self.layer(images.flatten(1)) * self.token

def build():
    return Net()

def loaded():
    torch.manual_seed(3)
    return Net()

def tokens():
    return nn.Conv2d(3, 8, 3)

def broken():
    net = Net()
    net.layer.weight.data[0] = float("nan")
    return net

def number():
    return 3

def fails():
    raise RuntimeError("no weights here")
"""


@pytest.fixture(scope="module")
def own_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("own") / "own_net.py"
    file.write_text(MODULE)
    return file


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, PX, PX, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor, spec: Any) -> Tensor:
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (spec.mean, spec.std))
    return (images - mean) / std


def the_external(encoder: Encoder) -> ExternalSpec:
    assert isinstance(encoder.backbone.spec, ExternalSpec)
    return encoder.backbone.spec


LIBRARIES: dict[str, Callable[[], nn.Module]] = {
    "torchvision/resnet34": lambda: torchvision.models.resnet34(),
    "timm/test_convnext": lambda: timm.create_model("test_convnext"),
    "timm/test_vit": lambda: timm.create_model("test_vit", img_size=PX),  # learned positions
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_file_of_weights_gives_the_librarys_features(name: str, tmp_path: Path, images: Tensor) -> None:
    network = LIBRARIES[name]().eval()
    for part in network.modules():  # running statistics of their own
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    weights = network.state_dict()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "w.pt"
    )
    save_file(weights, tmp_path / "w.safetensors")
    encoder = load_encoder(f"{name}:{tmp_path}/w.pt", None, SIZED)
    classifier = "fc" if name.endswith("34") else "head"
    if classifier == "fc":
        network.fc = nn.Identity()  # type: ignore[assignment]
    else:
        network.reset_classifier(0)  # type: ignore[operator]
    expected = network(normalised(images, the_external(encoder)))
    assert torch.allclose(encoder(images), expected, atol=1e-4)


def test_the_key_is_of_weights_network_and_preprocessing(tmp_path: Path, store: ArtifactStore, images: Tensor) -> None:
    name, weights = "timm/test_vit", LIBRARIES["timm/test_vit"]().state_dict()
    torch.save(weights, tmp_path / "w.pt")
    save_file(weights, tmp_path / "w.safetensors")
    encoder = load_encoder(f"{name}:{tmp_path}/w.pt", None, SIZED)
    ref = adopt(encoder, store)
    assert adopt(load_encoder(f"{name}:{tmp_path}/w.safetensors", None, SIZED), store) == ref
    other = Preprocessing(size_px=PX, mean=(0.1, 0.2, 0.3))
    assert adopt(load_encoder(f"{name}:{tmp_path}/w.pt", None, other), store) != ref
    again = load_encoder(f"train/{ref.key[:12]}", store)
    assert torch.equal(again(images), encoder(images))
    assert again.frame == encoder.frame
    assert again.frame.size_px == PX


def test_timm_says_how_images_are_brought_to_its_networks() -> None:
    encoder = load_encoder("timm/test_vit:random")
    assert (the_external(encoder).mean, encoder.frame.interpolation) == ((0.5, 0.5, 0.5), "bicubic")
    assert encoder.frame.size_px == 160
    assert encoder.frame.resize_px == int(160 / 0.95)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_encoder("timm/test_convnext:random")
    build_backbone(OpenCLIPSpec(config="tiny-resnet8-w8"), 1, 0)  # adds our small configurations
    model = open_clip.create_model("tiny-vit-w64" if "tiny-vit-w64" in open_clip.list_models() else "tiny-resnet8-w8")
    file = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(model.state_dict(), file)
    return file


def test_open_clip_brings_both_towers_and_clips_own_normalisation(clip_file: Path, store: ArtifactStore) -> None:
    encoder = load_encoder(f"open_clip/tiny-resnet8-w8:{clip_file}")
    assert encoder.text is not None
    model = open_clip.create_model("tiny-resnet8-w8")
    model.load_state_dict(torch.load(clip_file, weights_only=True))
    model.eval()
    side = encoder.frame.size_px
    images = torch.rand(2, 3, side, side)
    mean, std = (
        torch.tensor(one).view(3, 1, 1) for one in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    assert torch.allclose(encoder(images), model.encode_image((images - mean) / std), atol=1e-4)
    tokens = encoder.text.tokenize(["a cat", "a dog"])
    assert torch.allclose(encoder.text(tokens), model.encode_text(tokens), atol=1e-4)
    again = load_encoder(f"train/{adopt(encoder, store).key}", store)
    assert again.text is not None
    assert torch.equal(again(images), encoder(images))


def test_a_module_of_ones_own_says_its_size_and_sees_pixels(own_net: Path, store: ArtifactStore) -> None:
    encoder = load_encoder(f"{own_net}:loaded")
    assert (encoder.frame.size_px, encoder.frame.interpolation) == (16, "bicubic")
    pictures = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    ref = adopt(encoder, store)
    assert torch.equal(load_encoder(f"train/{ref.key}", store)(pictures), encoder(pictures))
    student = build_backbone(the_external(encoder), 1, 0, "student")
    assert not torch.equal(
        student.state_dict()["network.layer.weight"], encoder.backbone.state_dict()["network.layer.weight"]
    )
    assert not torch.equal(student.state_dict()["network.token"], encoder.backbone.state_dict()["network.token"])
    call = StageCall(EvaluateStage.model_construct(), {"model": ref})
    assert pickle.loads(pickle.dumps(call)).carried is not None


def test_the_modules_frame_is_the_evaluated_one() -> None:
    encoder = load_encoder("timm/test_convnext:random", None, Preprocessing(size_px=PX, resize_px=40))
    picture = torch.randint(0, 256, (1, 3, PX, 50), dtype=torch.uint8)
    pixels = to_evaluated_frame(picture[0].permute(1, 2, 0).numpy(), 40, PX, encoder.frame.interpolation)
    expected = encoder.backbone(evaluation_view(torch.tensor(pixels).permute(2, 0, 1)[None]))
    assert torch.allclose(encoder(picture), expected, atol=1e-5)
    assert torch.allclose(encoder(picture / 255), expected, atol=0.1)


def test_code_that_is_not_loaded_is_never_taken_from_a_store(tmp_path: Path) -> None:
    spec = ExternalSpec(library="own", name="absent:build", size_px=16, sha256="0" * 64)
    with pytest.raises(SpecError, match="--plugin"):
        build_backbone(spec, 1, 0)


def test_a_timm_folder_of_hugging_face_needs_no_transformers(tmp_path: Path, images: Tensor) -> None:
    network = timm.create_model("test_vit", img_size=PX).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    cfg = {"input_size": [3, PX, PX], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear"}
    cfg["crop_pct"] = 1.0
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": cfg}))
    encoder = load_encoder(str(tmp_path))
    network.reset_classifier(0)
    assert the_external(encoder).mean == (0.1, 0.2, 0.3)
    assert torch.allclose(encoder(images), network(normalised(images, the_external(encoder))), atol=1e-4)


def test_other_folders_of_hugging_face_need_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(SpecError, match="expected model"):
        load_encoder(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SpecError, match="run: pip install transformers"):
        load_encoder(str(tmp_path))


def _whole_module(file: Path) -> None:
    torch.save(nn.Linear(2, 2), file)


def _legacy_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": 1}))


def _compressed(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**24)


def _cut(file: Path) -> None:
    held = io.BytesIO()
    torch.save(timm.create_model("test_vit").state_dict(), held)
    file.write_bytes(held.getvalue()[:5000])


def _of_another(file: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), file)


def _of_other_positions(file: Path) -> None:
    save_file(timm.create_model("test_vit", img_size=64).state_dict(), file)


def _not_finite(file: Path) -> None:
    weights = timm.create_model("test_vit", img_size=PX).state_dict()
    weights["norm.weight"][0] = float("inf")
    save_file(weights, file)


def _two_networks(file: Path) -> None:
    weights = timm.create_model("test_vit", img_size=PX).state_dict()
    both = {f"encoder_{one}.{key}": value.clone() for one in "qk" for key, value in weights.items()}
    save_file(both, file)


def _huge_view(file: Path) -> None:
    weights = timm.create_model("test_vit", img_size=PX).state_dict()
    torch.save(weights | {"norm.weight": torch.zeros(1).expand(10**12)}, file)


def _no_tensors(file: Path) -> None:
    torch.save({"a": 1}, file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_whole_module, "could run code"),
        (_legacy_pickle, "could run code"),
        (_compressed, "compressed"),
        (_cut, "cannot be read|not a whole"),
        (_of_another, r"missing .* \(\d+\); unexpected .* \(\d+\)"),
        (_of_other_positions, "pos_embed should be"),
        (_not_finite, "norm.weight .* not finite"),
        (_two_networks, "2 networks that fit"),
        (_huge_view, "norm.weight should be"),
        (_no_tensors, "expected tensors"),
        (Path.touch, "not a whole"),
        (Path.mkdir, "expected a file of weights"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_in_a_sentence(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    write(file)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(f"timm/test_vit:{file}", None, SIZED)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "expected an encoder as"),
        ("timm/test_vit", "timm/test_vit:random"),
        ("timm/test_vitt:random", "did you mean test_vit"),
        ("torchvision/resnet43:random", "did you mean resnet34"),
        ("open_clip/RN51:random", "did you mean RN50"),
        ("torchvision/squeezenet1_0:random", "no linear classifier"),
        ("{tmp}/own_net.py:biuld", "did you mean build"),
        ("{tmp}/own_net.py:tokens", "pool over places or tokens"),
        ("{tmp}/own_net.py:broken", "layer.weight"),
        ("{tmp}/own_net.py:number", "found int"),
        ("{tmp}/own_net.py:fails", "no weights here"),
        ("{tmp}/absent.py:build", "cannot be read"),
        ("{tmp}", "config.json"),
        ("{tmp}/own_net.py", "next to its weights"),
        ("train/0123456789ab", "expected a store"),
    ],
)
def test_an_encoder_that_is_none_is_refused_in_a_sentence(spec: str, message: str, own_net: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder(spec.replace("{tmp}", str(own_net.parent)))


def test_images_must_be_pixels() -> None:
    encoder = load_encoder("timm/test_convnext:random", None, SIZED)
    with pytest.raises(SpecError, match="do not normalise"):
        encoder(torch.randn(2, 3, 8, 8) * 3)
    with pytest.raises(SpecError, match=r"images\[None\]"):
        encoder(torch.zeros(3, 8, 8))


def test_a_small_file_does_not_make_a_large_network(tmp_path: Path) -> None:
    spec = ExternalSpec(library="timm", name="vit_giant_patch14_224")
    assert num_weight_bytes(spec) > 2**31
    save_backbone(build_backbone(ExternalSpec(library="timm", name="test_convnext", size_px=PX), 1, 0), 1, tmp_path)
    text = (tmp_path / "backbone.json").read_text().replace("test_convnext", "vit_giant_patch14_224")
    (tmp_path / "backbone.json").write_text(text)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_backbone(tmp_path)


NAMES = {
    "resnet18": ResNetSpec(depth=18, stem="small"),
    "timm/test_vit": ExternalSpec(library="timm", name="test_vit", size_px=16),
    "torchvision/resnet34": ExternalSpec(library="torchvision", name="resnet34", size_px=16),
    "open_clip/RN50": ExternalSpec(library="open_clip", name="RN50", size_px=16),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_named_in_training(name: str) -> None:
    train = TrainSpec.model_validate({"method": "byol", "backbone": name, "fit": fit_spec()})
    expected = NAMES[name]
    side = train.fit.views.size_px
    sized = expected.model_copy(update={"size_px": side}) if isinstance(expected, ExternalSpec) else expected
    assert train.backbone == sized
    assert TrainStage.model_validate({"train": train.model_dump(), "seed": 0}).train == train


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 16 training and 8 test images each, of several sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, number in (("train", 16), ("test", 8)):
        for at, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = np.clip(100 + 60 * at + rng.normal(0, 30, (20 + index % 3, 26, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{index}.png")
    return folder


def test_an_adopted_encoder_goes_through_every_stage_as_a_trained_one(photos: Path, store: ArtifactStore) -> None:
    frame = DatasetSpec(frame_px=12)
    images = run_stage(StageCall(IngestStage(dataset=frame), data=str(photos)), store).ref
    encoder = load_encoder("timm/test_resnet:random", None, Preprocessing(size_px=24))
    inputs = {"dataset": images, "suspect": adopt(encoder, store)}
    repaired = run_stage(StageCall(DefendStage(defence=compress_spec(2, epochs=1), seed=0), inputs), store).ref
    student = load_encoder(f"defend/{repaired.key}", store)
    assert student.backbone.spec == encoder.backbone.spec
    assert student.frame == encoder.frame
    evaluation = EvaluationSpec(probes=("knn",), crop_px=12)
    call = StageCall(
        EvaluateStage(evaluation=evaluation, trigger=None, target_class="", seed=0),
        {"dataset": images, "model": repaired},
    )
    assert store.manifest(run_stage(call, store).ref).summary["measurements"]["accuracy/clean/knn"] >= 0


def test_byol_trains_a_network_of_timm(photos: Path, store: ArtifactStore) -> None:
    frame = DatasetSpec(frame_px=12)
    images = run_stage(StageCall(IngestStage(dataset=frame), data=str(photos)), store).ref
    train = TrainSpec.model_validate(
        {"method": METHODS["byol"].model_dump(), "backbone": "timm/test_resnet", "fit": fit_spec(epochs=1)}
    )
    made = run_stage(StageCall(TrainStage(train=train, seed=0), {"dataset": images}), store).ref
    encoder = load_encoder(f"train/{made.key}", store)
    assert encoder.frame.size_px == 12
    fresh = build_backbone(train.backbone, 1, 0)
    weights = encoder.backbone.state_dict()
    assert any(not torch.equal(weights[name], value) for name, value in fresh.state_dict().items())


def test_the_command_measures_an_encoder_and_a_reference(photos: Path, tmp_path: Path, capsys: Any) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    given = [
        "evaluate",
        "--encoder",
        f"timm/test_resnet:{tmp_path}/w.pt",
        "--data",
        str(photos),
        "--image-size",
        "16",
    ]
    given += ["--reference", "timm/test_resnet:random", "--trigger", "grid", "--target", "dog", "--json"]
    given += ["--store", str(tmp_path / "store"), "--set", "evaluation.unseen_triggers=2"]
    given += ["--set", "evaluation.probes.knn.neighbours=3"]
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["role"] for one in found["encoders"]] == ["encoder", "reference"]
    for one in found["encoders"]:
        at = {(row["name"], row["condition"], row["probe"]): row for row in one["numbers"]}
        assert at["accuracy", "clean", "knn"]["n"] == 16
        assert at["attack_success_rate", "triggered", "linear_100"]["n"] == 8
        assert at["attack_success_rate", "triggered", "linear_100"]["low"] is not None
        assert ("attack_success_rate", "unseen_trigger", "knn") in at
        assert "shorter side to 16 px" in one["frame"]
    assert found["next"] == [f"ssl-backdoor show {found['encoders'][0]['evaluation'][:21]}"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trigger", "grid"], "--trigger needs --target"),
        (["--trigger", "grid", "--target", "dgo"], "did you mean dog"),
        (["--trigger", "gird", "--target", "dog"], "a kind of badnets, grid, image"),
        (["--trigger", '{"kind": "grid"}', "--target", "dog"], "give size_px or size_frac"),
        (["--set", "train.fit.epochs=3"], "--set takes dataset"),
        (["--mean", "1,2"], "three numbers"),
    ],
)
def test_the_command_refuses_in_a_sentence(
    more: list[str], message: str, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    given = ["evaluate", "--encoder", "timm/test_resnet:random", "--data", str(photos), "--image-size", "16"]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--store", str(tmp_path / "store"), *more])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_clip_takes_both_towers_by_name_and_others_are_refused() -> None:
    assert TrainSpec.model_validate({"method": "clip", "backbone": "open_clip/RN50"}).backbone == OpenCLIPSpec()
    with pytest.raises(ValueError, match="trains a backbone of kind vit"):
        TrainSpec.model_validate({"method": "mae", "backbone": "timm/test_vit"})
    with pytest.raises(ValueError, match="FUNCTION"):
        backbone_of("resnet19", 32)
    with pytest.raises(ValueError, match="must be the side of the images"):
        TrainSpec(method=BYOLSpec(), backbone=ExternalSpec(library="timm", name="test_vit", size_px=100))


def test_equal_seeds_draw_equal_networks() -> None:
    spec = ExternalSpec(library="timm", name="test_vit", size_px=PX)
    torch.manual_seed(0)
    one, two, other = build_backbone(spec, 1, 0), build_backbone(spec, 1, 0), build_backbone(spec, 1, 1)
    weights = [network.state_dict()["network.blocks.0.attn.qkv.weight"] for network in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
