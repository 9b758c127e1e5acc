import logging
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torchvision.transforms.functional as TF
from torch import nn

from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import SplitBatchNorm
from ssl_backdoor.methods.clip_towers import CONFIGS, TextTower, build_towers, load_open_clip, tower_config
from ssl_backdoor.specs import OpenCLIPSpec
from ssl_backdoor.train.checkpoint import load_backbone, save_backbone

TINY = [OpenCLIPSpec(config=file.stem) for file in sorted(CONFIGS.glob("*.json"))]
DEEP = {"context_length": 24, "vocab_size": 4096, "width": 64, "heads": 2, "layers": 3}
TEXTS = ["a dog", "", "two red aeroplanes over a blue, cloudless sky!", "word " * 40]


def equal(one: nn.Module, two: nn.Module) -> bool:
    states = one.state_dict(), two.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_towers_depend_on_seed_and_role_alone() -> None:
    spec = OpenCLIPSpec(config="tiny-resnet8-w8")
    one = build_towers(spec, 1)
    torch.rand(3)
    before = torch.get_rng_state()
    same = build_towers(spec, 1)
    assert torch.equal(torch.get_rng_state(), before)
    for index in (0, 1):
        assert equal(one[index], same[index])
        assert not equal(one[index], build_towers(spec, 2)[index])
        assert not equal(one[index], build_towers(spec, 1, "student")[index])


def test_building_says_nothing_and_leaves_logging_alone(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    build_towers(OpenCLIPSpec(config="tiny-vit-p4"), 0)
    assert logging.getLogger().handlers == handlers
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("spec", TINY, ids=lambda spec: spec.config)
@pytest.mark.parametrize("side_px", [16, 32, 64])
def test_tiny_towers_read_small_images_and_captions(spec: OpenCLIPSpec, side_px: int) -> None:
    image, text = build_towers(spec, 0)
    assert image.feature_dim == text.feature_dim == 64
    embeddings = image(torch.randn(2, 3, side_px, side_px))
    assert embeddings.shape == (2, 64)
    assert text(text.tokenize(["a dog", "a cat"])).shape == (2, 64)
    (embeddings.sum() + text(text.tokenize(TEXTS)).sum()).backward()
    assert all(parameter.grad is not None for parameter in image.parameters())
    assert [name for name, p in text.named_parameters() if p.grad is None] == ["logit_scale"]


@pytest.mark.parametrize("config", ["tiny-resnet8-w8", "tiny-vit-p4"])
def test_an_encoder_may_see_pixels_in_clips_own_mean_and_deviation(config: str, tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 16, 16)
    of_imagenet = TF.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD))
    of_clip = TF.normalize(pixels, list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD))
    plain, _ = build_towers(OpenCLIPSpec(config=config), 0)
    own, _ = build_towers(OpenCLIPSpec(config=config, normalisation="clip"), 0)
    torch.testing.assert_close(own(of_imagenet), plain(of_clip), rtol=1e-4, atol=1e-5)
    assert own.state_dict().keys() == plain.state_dict().keys()
    save_backbone(own, 1, tmp_path)
    loaded = load_backbone(tmp_path)  # it carries them: whoever probes it need not know
    torch.testing.assert_close(loaded(of_imagenet), own.eval()(of_imagenet))


def test_text_tower_gives_what_open_clip_gives() -> None:
    """open_clip runs all positions through all blocks; ours leaves out what cannot reach the text's end."""
    model = open_clip.CustomTextCLIP(**(tower_config("tiny-vit-p4") | {"text_cfg": DEEP}))
    text = TextTower(OpenCLIPSpec(config="tiny-vit-p4"), model.text, {"embed_dim": 64})
    tokens = text.tokenize(TEXTS)
    torch.testing.assert_close(text(tokens), model.encode_text(tokens), rtol=1e-4, atol=1e-5)
    for row, expected in enumerate(model.encode_text(tokens)):
        torch.testing.assert_close(text(tokens[row : row + 1])[0], expected, rtol=1e-4, atol=1e-5)


def test_small_vocabulary_is_the_first_merges_of_open_clips() -> None:
    small, full = build_towers(TINY[0], 0)[1].tokenizer, open_clip.get_tokenizer("RN50")
    words = [word for word, number in full.encoder.items() if number < 512 + 3582]
    assert [small.encoder[word] for word in words] == list(range(4094))
    assert small.vocab_size == 4096
    assert small.decode(small.encode("a photo of an aeroplane, 3 axolotls")) == "a photo of an aeroplane , 3 axolotls "
    tokens = build_towers(TINY[0], 0)[1].tokenize(TEXTS)
    assert tokens.shape == (4, 24)
    assert tokens.dtype == torch.int64
    assert tokens[1].tolist() == [4094, 4095] + [0] * 22
    assert tokens[3, -1] == 4095


def test_batch_norm_in_groups_starts_from_the_same_weights() -> None:
    whole, grouped = (build_towers(TINY[0], 0, bn_groups=groups)[0].train() for groups in (1, 2))
    assert equal(whole, grouped)
    assert grouped.bn_groups == 2
    assert sum(isinstance(part, SplitBatchNorm) for part in grouped.modules()) == sum(
        isinstance(part, nn.BatchNorm2d) for part in whole.modules()
    )
    images = torch.randn(8, 3, 16, 16)
    torch.testing.assert_close(grouped(images)[:4], build_towers(TINY[0], 0)[0].train()(images[:4]))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("RN5O", "no configuration 'RN5O'; near it are RN50,.* for small images there are tiny-resnet8-w16"),
        ("ViT-B-16-SigLIP", "it is not a pair of towers under CLIP's loss; RN50 and ViT-B-32 can"),
        ("coca_ViT-B-32", "not a pair of towers"),
        ("roberta-ViT-B-32", "would have to be downloaded"),
        ("convnext_base", "dropout draws from torch's global generator"),
    ],
)
def test_configurations_that_cannot_be_used(config: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        build_towers(OpenCLIPSpec(config=config), 0)


def test_images_of_another_side_than_the_network_reads() -> None:
    image = build_towers(OpenCLIPSpec(config="RN50"), 0)[0]
    with pytest.raises(SpecError, match=r"RN50 reads images of 224 px, found 64 px; set fit\.views\.size_px"):
        image(torch.zeros(1, 3, 64, 64))


def test_open_clip_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(SpecError, match=r"CLIP needs open_clip, .*; run: pip install 'open_clip_torch>=3.3,<4'"):
        build_towers(TINY[0], 0)


def test_our_configurations_are_listed_once() -> None:
    assert load_open_clip() is load_open_clip() is open_clip
    assert [name for name in open_clip.list_models() if name.startswith("tiny-")] == [
        *(f"tiny-resnet8-w{width}" for width in (8, 16, 32, 64)),
        "tiny-vit-p4",
    ]


@pytest.mark.slow
def test_the_other_methods_do_without_open_clip() -> None:
    program = (
        "import sys\n"
        "sys.modules['open_clip'] = sys.modules['timm'] = None\n"
        "import ssl_backdoor.stages, ssl_backdoor.train.pretrain, ssl_backdoor.defences\n"
        "from ssl_backdoor.specs import BYOLSpec, TrainSpec\n"
        "print(type((spec := TrainSpec(method=BYOLSpec())).method.build(spec, 0)).__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "BYOL\n"), run.stderr[-2000:]
