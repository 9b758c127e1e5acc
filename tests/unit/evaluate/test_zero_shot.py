"""Against open_clip's own zero-shot code, on a real (tiny) model."""

import re

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from ssl_backdoor.evaluate.probes import predict
from ssl_backdoor.evaluate.zero_shot import class_embeddings, embed_texts, prompt_templates, zero_shot
from ssl_backdoor.methods.clip_towers import TextTower
from ssl_backdoor.seeds import stream
from tests.support.tiny_towers import tiny_towers

CLASSES = ("airplane", "fire_truck", "golden-retriever", "cat", "frog")


class AsOpenCLIP:
    """What open_clip.build_zero_shot_classifier asks of a model."""

    def __init__(self, text_tower: TextTower) -> None:
        self.text_tower = text_tower

    def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert normalize
        return F.normalize(self.text_tower(tokens), dim=-1)


@pytest.mark.parametrize("prompts", ["imagenet80", "simple7"])
def test_the_classifier_and_its_accuracy_are_open_clips(prompts: str) -> None:
    image_tower, text_tower = tiny_towers()
    names = [re.sub("[_-]", " ", name) for name in CLASSES]
    templates = {"imagenet80": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple7": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    theirs = open_clip.build_zero_shot_classifier(
        AsOpenCLIP(text_tower), text_tower.tokenize, names, templates[prompts], num_classes_per_batch=2
    )
    ours = class_embeddings(text_tower, CLASSES, prompts)
    torch.testing.assert_close(ours, theirs.T, rtol=1e-4, atol=1e-5)
    images = torch.from_numpy(stream(0, "images").normal(0, 1, (60, 3, 16, 16))).float()
    labels = torch.arange(60) % len(CLASSES)
    features = image_tower(images)
    logits = 100.0 * F.normalize(features, dim=-1) @ theirs
    assert predict(zero_shot(ours), features, 5).tolist() == logits.argmax(1).tolist()
    accuracy = (logits.argmax(1) == labels).float().mean()
    assert (predict(zero_shot(ours), features, 5) == labels).float().mean() == accuracy
    np.testing.assert_allclose(100 * zero_shot(ours)(features).numpy(), logits.numpy(), atol=1e-2)


def test_the_templates_are_clips_eighty_and_seven() -> None:
    assert [len(prompt_templates(prompts)) for prompts in ("imagenet80", "simple7")] == [80, 7]
    assert prompt_templates("imagenet80")[0]("fire truck") == "a bad photo of a fire truck."


def test_texts_are_unit_rows_in_their_order_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, text_tower = tiny_towers()
    texts = ["a dog", "a very long caption of a dog that runs along the beach", "a cat", "x"]
    whole = embed_texts(text_tower, texts)
    monkeypatch.setattr("ssl_backdoor.evaluate.zero_shot._BATCH", 3)
    torch.testing.assert_close(embed_texts(text_tower, texts), whole)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(embed_texts(text_tower, texts[2:3])[0], whole[2])
