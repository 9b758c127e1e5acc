"""The other filters against slow loops or by a case whose answer is known, and the rule by which samples go."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ssl_backdoor.data.images import encode_jpeg75, encode_png
from ssl_backdoor.data.views import evaluation_view
from ssl_backdoor.detection.clustered import ActivationClusteringSpec, SpectralSignaturesSpec
from ssl_backdoor.detection.duplicates import DuplicatesSpec, difference_hash, file_kind, num_alike
from ssl_backdoor.detection.image_text_similarity import ImageTextSimilaritySpec
from ssl_backdoor.detection.local_density import LocalDensitySpec
from ssl_backdoor.detection.pool import Pool
from ssl_backdoor.detection.ranking import left_out, share_of
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.pair_mixture import least_safe
from ssl_backdoor.progress import silent
from ssl_backdoor.seeds import stream, torch_generator
from ssl_backdoor.specs import Filter, built_in
from ssl_backdoor.train.checkpoint import load_backbone, load_text_tower
from tests.support.tiny_defences import save_clip

torch.set_num_threads(1)


def pool_of(images: torch.Tensor, **others: Any) -> Pool:
    return Pool(images, torch.arange(len(images)), "cpu", **others)


def random_images(count: int, side_px: int = 16) -> torch.Tensor:
    return torch.randint(256, (count, 3, side_px, side_px), generator=torch_generator(0, "images"), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("fraction", "number", "expected"), [(0.29, 100, 29), (0.1, 30, 3), (0.05, 19, 0), (0.5, 3, 1)]
)
def test_a_share_is_rounded_down_as_it_is_written(fraction: float, number: int, expected: int) -> None:
    assert share_of(fraction, number) == expected


def test_the_highest_go_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([1.0, 5.0, 5.0, math.nan, 5.0, 2.0, 9.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    may_go = ~scores.isnan()
    assert left_out(scores, may_go, 0.3).nonzero()[:, 0].tolist() == [1, 2, 6]
    may_go[6] = False  # a trusted one stays, and the next goes
    assert left_out(scores, may_go, 0.3).nonzero()[:, 0].tolist() == [1, 2, 4]
    assert left_out(scores, scores > 4, 0.9).sum() == 4
    assert not left_out(scores, may_go, 0.05).any()


def test_a_filter_by_an_encoder_says_that_it_needs_one() -> None:
    with pytest.raises(
        SpecError, match="local_density judges samples by an encoder that was trained on them, found none"
    ):
        LocalDensitySpec().judge(pool_of(random_images(4)), None, 0, silent)


# -------------------------------------------------------------------------------------------- clusters of features


def test_spectral_signatures_are_squared_projections_on_the_first_direction() -> None:
    features = torch.from_numpy(stream(0, "spectral").normal(size=(30, 6)) * np.array([1, 9, 1, 1, 1, 1]))
    centred = features.numpy() - features.numpy().mean(0)
    expected = (centred @ np.linalg.svd(centred)[2][0]) ** 2
    np.testing.assert_allclose(SpectralSignaturesSpec().of_class(features).numpy(), expected, rtol=1e-8)


def test_activation_clustering_ranks_a_small_part_that_is_apart() -> None:
    rng = stream(1, "activation")
    features = torch.from_numpy(np.concatenate([rng.normal(size=(40, 12)), rng.normal(size=(8, 12)) + 6]))
    scores = ActivationClusteringSpec().of_class(features, 0, 0)
    assert scores[40:].min() > 0 > scores[:40].max()
    # By hand: silhouettes from the distances to the means of the two parts, in the ten first components.
    centred = features.numpy() - features.numpy().mean(0)
    parts = centred @ np.linalg.svd(centred)[2][:10].T
    means = parts[:40].mean(0), parts[40:].mean(0)
    apart = np.array([[np.linalg.norm(one - mean) for mean in means] for one in parts])
    own, other = np.where(np.arange(48) < 40, apart.T, apart.T[::-1])
    silhouettes = (other - own) / np.maximum(own, other)
    np.testing.assert_allclose(scores[40:].numpy(), silhouettes.mean() * silhouettes[40:], rtol=1e-6)
    # Two parts of like size: nothing is suspicious.
    even = torch.from_numpy(np.concatenate([rng.normal(size=(20, 4)), rng.normal(size=(20, 4)) + 6]))
    assert ActivationClusteringSpec().of_class(even, 0, 0).max() <= 0


# ------------------------------------------------------------------------------------------------ images and captions


def two_humps(count: int = 300, few: int = 30, gap: float = 6.0) -> np.ndarray:
    rng = stream(2, "humps")
    return np.concatenate([rng.normal(0.6, 0.05, count), rng.normal(0.6 - 0.05 * gap, 0.05, few)])


def test_the_cut_lies_between_two_humps_and_one_hump_is_not_split() -> None:
    cosines = two_humps()
    cut = least_safe(cosines, 0.9, 0.5, 0)
    assert 0.3 < cut < 0.6
    assert (cosines[300:] < cut).mean() > 0.9
    assert (cosines[:300] < cut).mean() < 0.05
    assert least_safe(np.full(50, 0.5), 0.9, 0.5, 0) == -math.inf
    assert least_safe(stream(3, "one").normal(size=4000), 0.9, 3.0, 0) == -math.inf


def test_a_pair_goes_by_its_cosine_up_to_the_cut() -> None:
    scores = torch.from_numpy(-two_humps())
    suspicious = ImageTextSimilaritySpec().is_suspicious(scores, 0)
    assert suspicious[300:].float().mean() > 0.9
    assert scores[suspicious].min() > scores[~suspicious].max()
    assert ImageTextSimilaritySpec(form="cosine").is_suspicious(scores, 0).all()


def test_the_score_of_a_pair_is_minus_the_mean_cosine_with_its_captions(tmp_path: Path) -> None:
    folder, images = save_clip(tmp_path), random_images(5, 32)
    texts = ["a cat", "a dog\na small dog", "a cat", "old red bird", "a dog"]
    order = torch.tensor([3, 1, 4, 0, 2])
    pool = Pool(images, order, "cpu", pa.chunked_array([texts]))
    scores = ImageTextSimilaritySpec(form="cosine").score(pool, folder, 0, silent)
    image, text = load_backbone(folder), load_text_tower(folder)
    with torch.no_grad():
        for place, row in enumerate(order.tolist()):
            seen = image(evaluation_view(images[row : row + 1]))[0]
            read = [text(text.tokenize([caption]))[0] for caption in texts[row].split("\n")]
            cosines = [float(torch.cosine_similarity(seen, one, dim=0)) for one in read]
            assert float(scores[place]) == pytest.approx(-np.mean(cosines), abs=1e-5)


# ---------------------------------------------------------------------------------------------- duplicates and files


def test_duplicates_are_counted_and_one_that_has_none_is_kept() -> None:
    images = random_images(12)
    images[3] = images[7] = images[9]
    verdicts = DuplicatesSpec(budget=0.5).judge(pool_of(images), None, 0, silent)
    assert verdicts.scores.tolist() == [2.0 if row in (3, 7, 9) else 0.0 for row in range(12)]
    assert verdicts.is_left_out.nonzero()[:, 0].tolist() == [3, 7, 9]


@pytest.mark.parametrize("max_bits", [0, 1, 20, 30])
def test_hashes_are_compared_by_the_bits_in_which_they_differ(max_bits: int) -> None:
    hashes = difference_hash(random_images(25))
    hashes[4] = hashes[5]
    hashes[6] = hashes[5]
    hashes[6, 0] = ~hashes[6, 0]
    bits = [[int((one != other).sum()) for other in hashes] for one in hashes]
    expected = [sum(count <= max_bits for count in row) - 1 for row in bits]
    assert num_alike(hashes, max_bits).tolist() == expected


def test_captions_are_equal_but_for_case_and_spaces() -> None:
    captions = pa.chunked_array([["a  Cat", "A cat", "a dog", None, None]])
    found = DuplicatesSpec(of="captions").score(pool_of(random_images(5), captions=captions), Path(), 0, silent)
    assert found.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    with pytest.raises(SpecError, match="these images have none: set of=images"):
        DuplicatesSpec(of="captions").score(pool_of(random_images(2)), Path(), 0, silent)


def test_a_file_s_kind_is_its_format_size_and_tables() -> None:
    pixels = random_images(2).permute(0, 2, 3, 1).numpy()
    assert file_kind(encode_png(pixels[0])) == file_kind(encode_png(pixels[1]))
    assert file_kind(encode_jpeg75(pixels[0])) == file_kind(encode_jpeg75(pixels[1]))
    kinds = {
        file_kind(encode_png(pixels[0])),
        file_kind(encode_jpeg75(pixels[0])),
        file_kind(encode_png(pixels[0, :8])),
    }
    assert len(kinds) == 3


@pytest.mark.parametrize("kind", [one for one in built_in("defence") if issubclass(one, Filter)])
def test_every_filter_says_what_its_score_can_be_compared_under(kind: Any) -> None:
    assert {"input_range", "normalisation", "divisor"} <= set(kind.card)
