"""Detectors of inputs: against slow oracles, p-values whose coverage is counted, and what is written of them."""

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from flows.recipes import clip, small
from ssl_backdoor.data.view_parameters import IMAGENET_MEAN
from ssl_backdoor.detection import inversion
from ssl_backdoor.detection.backdoor_ids import BackdoorIDSSpec, largest_step
from ssl_backdoor.detection.bdetclip import BDetCLIPSpec, away_from
from ssl_backdoor.detection.inputs import InputDetector
from ssl_backdoor.detection.pool import Pool
from ssl_backdoor.detection.run import detect
from ssl_backdoor.detection.subspace import SubspaceSpec, extrapolated
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import RunSpec, built_in
from ssl_backdoor.specs.family import forget
from ssl_backdoor.train.checkpoint import save_backbone, save_text_tower
from tests.support.backdoors import SIDE_PX, save_fresh, tiny_pool
from tests.support.tiny_sets import CLASSES, tiny_dataset
from tests.support.tiny_training import objective

TRIGGER = GridTriggerSpec(size_px=6)
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _members_of_this_file_alone():
    yield
    forget(__name__)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fresh(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def clip_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("clip"), objective("clip")
    save_backbone(model.backbone, 1, folder)
    assert model.text_tower is not None
    save_text_tower(model.text_tower, folder)
    return folder


class BrightSpec(InputDetector):
    """Brightness; nothing is found in what is brighter than ``blind_above``."""

    kind: Literal["test_bright_input"] = "test_bright_input"
    blind_above: float = 256.0

    @property
    def card(self) -> dict[str, Any]:
        return {"input_range": "[0, 255]", "normalisation": "none", "divisor": "pixels"}

    def score(self, pool: Pool, encoder: Path, seed: int, on_progress: Any) -> torch.Tensor:
        scores = torch.cat([images.float().mean((1, 2, 3)) for images in pool.batches()])
        return scores.masked_fill(scores > self.blind_above, float("nan"))


def judge(spec: Any, folder: Path, out: Path, seed: int = 0, trigger: Any = TRIGGER, **more: Any) -> dict[str, Any]:
    dataset = tiny_dataset(folder, train_per_class=1, test_per_class=8) if isinstance(folder, Path) else folder
    return detect(spec, dataset, None, out, trigger, None, out, seed, "cpu", **more)


def test_references_are_other_images_and_p_values_count_them(tmp_path: Path):
    told = judge(BrightSpec(num_images=10, num_references=9), tmp_path / "data", tmp_path, num_unseen=3)
    rows = pq.read_table(tmp_path / "detections.parquet").to_pylist()
    by = {name: [row for row in rows if row["condition"] == name] for name in ("reference", "clean", "triggered",
                                                                              "unseen_trigger")}  # fmt: skip
    assert {name: len(found) for name, found in by.items()} == {
        "reference": 9, "clean": 10, "triggered": 10, "unseen_trigger": 10,
    }  # fmt: skip
    keys = {name: [row["key"] for row in found] for name, found in by.items()}
    assert keys["clean"] == keys["triggered"] == keys["unseen_trigger"]
    assert not set(keys["clean"]) & set(keys["reference"])
    assert all(row["p_value"] is None for row in by["reference"])
    null = [row["score"] for row in by["reference"]]
    for row in (*by["clean"], *by["triggered"], *by["unseen_trigger"]):
        assert row["p_value"] == (1 + sum(one >= row["score"] for one in null)) / 10
    assert [row["is_positive"] for row in rows] == [False] * 19 + [True] * 20
    assert [row["score"] for row in by["triggered"]] != [row["score"] for row in by["unseen_trigger"]]
    assert (told["null_n"], told["smallest_p_value"], told["card"]["divisor"]) == (9, 0.1, "pixels")


def test_own_and_unseen_triggers_are_measured_apart(tmp_path: Path):
    told = judge(BrightSpec(), tmp_path / "data", tmp_path, num_unseen=2)
    rows = pq.read_table(tmp_path / "measurements.parquet").to_pylist()
    rates = ("detection_auroc", "detection_true_positive_rate", "detection_false_positive_rate")
    assert [(row["name"], row["condition"]) for row in rows] == [
        *((name, "input") for name in rates), *((name, "input_unseen") for name in rates[:2]),
    ]  # fmt: skip
    assert {row["n"] for row in rows} == {24, 12}
    assert set(told["measurements"]) == {*rates, *(f"{name}/input_unseen" for name in rates[:2])}
    assert all("n = 12, so p is at least 0.0769" in row["definition"] for row in rows)
    assert all("Card: input range [0, 255]; normalisation none; divisor pixels" in row["definition"] for row in rows)


def test_a_trigger_without_other_patterns_is_shown_alone(tmp_path: Path):
    class OneOfItsKind(GridTriggerSpec):
        kind: Literal["test_one_of_its_kind"] = "test_one_of_its_kind"  # type: ignore[assignment]

        def unseen(self, seed: int) -> Any:
            return None

    told = judge(BrightSpec(), tmp_path / "data", tmp_path, trigger=OneOfItsKind(size_px=6), num_unseen=3)
    assert not any(name.endswith("unseen") for name in told["measurements"])


def test_an_input_in_which_nothing_is_found_has_no_p_value(tmp_path: Path):
    told = judge(BrightSpec(blind_above=127.5), tmp_path / "data", tmp_path)
    rows = pq.read_table(tmp_path / "detections.parquet").to_pylist()
    blind = [row for row in rows if row["score"] is None]
    assert 0 < len(blind) < len(rows)
    assert all(row["p_value"] is None for row in blind)
    assert told["null_n"] == sum(row["condition"] == "reference" and row["score"] is not None for row in rows)


def test_of_clean_inputs_as_few_have_a_small_p_as_promised(tmp_path: Path):
    """Coverage: over splits into references and others the share of p <= t is at most t."""
    dataset = tiny_dataset(tmp_path / "data", train_per_class=1, test_per_class=20)
    p_values = []
    for seed in range(40):
        detect(BrightSpec(), dataset, None, tmp_path, TRIGGER, None, tmp_path, seed, "cpu")
        table = pq.read_table(tmp_path / "detections.parquet")
        p_values += [row["p_value"] for row in table.to_pylist() if row["condition"] == "clean"]
    assert len(p_values) == 40 * 30
    for promised in (0.05, 0.1, 0.25, 0.5, 0.9):
        exact = np.floor(promised * 31) / 31
        # Of one split all share their references: the deviation of a split's rate is below that of 15 alone.
        margin = 4 * np.sqrt(exact * (1 - exact) / 15 / 40)
        assert abs(np.mean(np.array(p_values) <= promised) - exact) < margin
        assert exact <= promised


# ------------------------------------------------------------------------------------------------- BackdoorIDS

FEW = BackdoorIDSSpec(num_levels=5, num_masks=2, cells=3)


def test_backdoor_ids_is_the_slow_one(encoder: Path):
    pool, model = tiny_pool(5), inversion.Encoder(encoder, "cpu")
    found = FEW.score(pool, encoder, 3, lambda _: None)
    for row in range(5):
        image = pool.images(torch.tensor([row])).float() / 255
        levels = []
        for level in range(5):
            seen = []
            for one in range(2):
                order = torch.randperm(9, generator=torch_generator(3, "masks", one)).tolist()
                hidden, masked = round(0.9 * level / 4 * 9), image.clone()
                for y in range(SIDE_PX):
                    for x in range(SIDE_PX):
                        if order[(y * 3 // SIDE_PX) * 3 + x * 3 // SIDE_PX] < hidden:
                            masked[0, :, y, x] = torch.tensor(IMAGENET_MEAN)
                seen.append(model.features(masked)[0])
            levels.append(torch.stack(seen).mean(0))
        steps = [1 - float(F.cosine_similarity(a, b, dim=0)) for a, b in pairwise(levels)]
        assert float(found[row]) == pytest.approx(max(steps) / float(np.median(steps)), rel=1e-3)


def test_what_is_hidden_stays_hidden():
    masks = list(FEW.masks(10, 7, torch_generator(0, "masks", 0)))
    assert len(masks) == 4
    assert all(bool((later | ~earlier).all()) for earlier, later in pairwise(masks))
    assert masks[-1].float().mean() == pytest.approx(0.9, abs=0.15)
    (pixels, *_) = BackdoorIDSSpec(num_levels=4, cells=64).masks(4, 4, torch_generator(0, "masks", 0))
    assert int(pixels.sum()) == round(0.3 * 16)


def test_the_score_of_an_image_does_not_depend_on_the_others(encoder: Path):
    images = torch.cat(list(tiny_pool(300).batches()))  # two batches
    all_of, some = (Pool(part, torch.arange(len(part)), "cpu") for part in (images, images[295:]))
    scores = [FEW.score(pool, encoder, 0, lambda _: None) for pool in (all_of, some)]
    torch.testing.assert_close(scores[0][295:], scores[1], rtol=1e-4, atol=1e-4)


class Corner:
    """Stands for a backdoored encoder: white in the lower right corner leads all images to one feature."""

    def __init__(self, *_: Any) -> None: ...

    def features(self, images: torch.Tensor) -> torch.Tensor:
        own = F.adaptive_avg_pool2d(images, 4).flatten(1) - 0.5
        weight = 40 * images[:, :, -2:, -2:].mean((1, 2, 3), keepdim=True).flatten(1) ** 8
        return F.normalize(own + weight * torch.eye(own.shape[1])[0], dim=1)


def test_a_triggered_input_jumps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inversion, "Encoder", Corner)
    clean = torch.cat(list(tiny_pool(40).batches()))
    triggered = clean.clone()
    triggered[:, :, -2:, -2:] = 255
    scores = BackdoorIDSSpec(num_masks=1).score(
        Pool(torch.cat([clean, triggered]), torch.arange(80), "cpu"), Path(), 0, lambda _: None
    )
    assert float((scores[40:, None] > scores[None, :40]).float().mean()) > 0.95


def test_features_that_stand_still_give_no_score():
    still = torch.ones(6, 2, 3)
    still[3:, 1] = torch.tensor([1.0, -1.0, 0.5])
    assert torch.isnan(largest_step(still)).tolist() == [True, True]


# ------------------------------------------------------------------------------------------- BDetCLIP, Subspace


def named_pool(count: int) -> Pool:
    images = torch.cat(list(tiny_pool(count).batches()))
    return Pool(images, torch.arange(count), "cpu", classes=CLASSES)


def test_bdetclip_is_the_slow_one():
    generator = torch_generator(0, "texts")
    images, told, nothing = (
        F.normalize(torch.randn(shape, generator=generator), dim=-1) for shape in ((6, 8), (3, 7, 8), (3, 7, 8))
    )
    direction = np.zeros(8)
    for c in range(3):
        for k in range(7):
            direction += (told[c, k].numpy() - nothing[c, k].numpy()) / 7
    slow = [-float(one.numpy() @ direction / np.linalg.norm(direction)) for one in images]
    np.testing.assert_allclose(away_from(images, told, nothing), slow, rtol=1e-5)
    assert int(away_from(torch.eye(8), told, nothing).argmin()) == int(np.argmax(direction))


def test_subspace_s_points_are_the_slow_ones():
    generator = torch_generator(1, "texts")
    texts = F.normalize(1 + 0.2 * torch.randn(10, 6, generator=generator).double(), dim=1)
    values, vectors = np.linalg.eigh(np.cov(texts.numpy().T))
    order = np.argsort(-values)
    share, directions = np.cumsum(values[order]) / values.sum(), []
    for at in order[: min(3, int((share < 0.95).sum()) + 1)]:
        directions.append(vectors[:, at] * (-1 if vectors[:, at].sum() < 0 else 1))
    slow = []
    for i in range(1, 91):
        for direction in directions:
            point = texts[0].numpy() + 0.01 * i * direction
            cosine = point @ texts[0].numpy() / np.linalg.norm(point)
            if 0.85 < cosine < 1:
                slow.append(point)
    found = extrapolated(texts, 0.01)
    np.testing.assert_allclose(found, slow, atol=1e-9)
    assert 0 < len(slow) < 90 * len(directions)  # some lie too far off
    assert len(extrapolated(texts[:1].expand(10, -1), 0.01)) == 0


@pytest.mark.parametrize("spec", [BDetCLIPSpec(), SubspaceSpec()])
def test_of_clip_s_inputs_each_is_scored_by_itself(spec: Any, clip_encoder: Path):
    pool = named_pool(8)
    scores = spec.score(pool, clip_encoder, 0, lambda _: None)
    fewer = Pool(pool.images(torch.arange(3)), torch.arange(3), "cpu", classes=CLASSES)
    torch.testing.assert_close(spec.score(fewer, clip_encoder, 0, lambda _: None), scores[:3], rtol=1e-4, atol=1e-5)
    assert bool(scores.isfinite().all())
    assert float(scores.std()) > 0
    with pytest.raises(SpecError, match="names of the classes"):
        spec.score(tiny_pool(3), clip_encoder, 0, lambda _: None)


# ------------------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize("kind", [one for one in built_in("detector") if issubclass(one, InputDetector)])
def test_every_detector_of_inputs_says_what_its_score_can_be_compared_under(kind: Any):
    spec = kind()
    assert {"input_range", "normalisation", "divisor"} <= set(spec.card)
    assert spec.reduced[1] >= 1
    assert spec.work(100) == 50 + 3 * 50
    assert spec.work(10_000) == 500 + 3 * 500


@pytest.mark.parametrize(("changes", "message"), [
    ({"train": clip.TINY, "attack": Carlini2022TargetedSpec(num_poisons=2)}, "under a trigger, but attack"),
    ({"train": small.BYOL, "attack": small.attack(11, "cat"), "detectors": ("bdetclip",)}, "bdetclip needs method"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(changes: Any, message: str):
    fields = {"dataset": clip.cifar10(), "detectors": (BackdoorIDSSpec(),), **changes}
    with pytest.raises(ValueError, match=message):
        RunSpec(**fields)
