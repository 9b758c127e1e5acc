"""The public functions: what they take, what they refuse, and that one call makes one artifact."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_backdoor as sb
from ssl_backdoor import api
from ssl_backdoor.data.in_memory import write_samples
from ssl_backdoor.errors import CheckpointError, DataError, SpecError, UserError
from ssl_backdoor.specs import DatasetSpec
from tests.support.tiny_training import train_spec

PATCH = {"kind": "grid", "size_px": 4}
TRAIN = train_spec("simsiam")


def pixels(number, seed=0, side=16):
    return np.random.default_rng(seed).integers(0, 256, (number, side, side, 3), dtype=np.uint8)


class Pairs:
    """As torch's datasets: an index and a length, no iterator that ends."""

    classes = ("ant", "bee")

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index % len(self.images)], index % 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sb.open_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def images(store):
    return sb.ingest(Pairs(pixels(24)), test=Pairs(pixels(8, 1)), store=store)


def test_importing_the_package_is_light():
    code = """
import sys, ssl_backdoor as sb
assert set(sb.__all__) <= set(dir(sb)) and sb.__version__
assert not {"torch", "numpy", "pydantic", "pyarrow"} & set(sys.modules)
assert callable(sb.ingest) and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_folder_of_the_library_is_also_the_function_of_its_name():
    for name in ("train", "poison", "evaluate"):
        folder = importlib.import_module(f"ssl_backdoor.{name}")
        assert getattr(sb, name) is folder
        with pytest.raises(TypeError, match="missing"):
            getattr(sb, name)()


def test_every_public_function_says_what_it_takes_gives_and_raises():
    assert set(api.__all__) == set(sb.__all__) - {"__version__"}
    for name in api.__all__:
        function = getattr(api, name)
        assert function.__doc__
        if inspect.isfunction(function):
            assert "Raises:" in function.__doc__, name
            for parameter in inspect.signature(function).parameters:
                assert f"{parameter}:" in function.__doc__ or parameter in ("store", "ref", "uri"), (name, parameter)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = sb.trian


@pytest.mark.parametrize("shape", [(16, 16, 3), (5, 16, 16, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_stamp_is_the_same_on_arrays_and_tensors(shape, dtype):
    plain = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    given = plain if dtype == np.uint8 else (plain / 255).astype(dtype)
    before = given.copy()
    stamped = sb.stamp(given, PATCH, seed=3)
    assert (stamped.shape, stamped.dtype) == (shape, given.dtype)
    np.testing.assert_array_equal(given, before)
    levels = stamped if dtype == np.uint8 else np.rint(stamped * 255).astype(np.uint8)
    np.testing.assert_array_equal(levels, sb.stamp(plain, PATCH, seed=3))
    changed = (levels != plain).any(axis=-1)
    assert 8 <= changed.sum() / max(1, len(shape) == 3 or 5) <= 16  # of a patch of 4 x 4
    tensor = torch.from_numpy(np.moveaxis(given, -1, -3).copy())
    twin = sb.stamp(tensor, PATCH, seed=3)
    assert (twin.dtype, twin.shape) == (tensor.dtype, tensor.shape)
    np.testing.assert_allclose(np.moveaxis(twin.numpy(), -3, -1), stamped, atol=1e-6)


def test_places_follow_from_seed_and_index():
    same = np.repeat(pixels(1), 8, axis=0)
    first, again, other = (sb.stamp(same, PATCH, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first, axis=0)) > 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((3, 16, 16), np.uint8), "NumPy \\(H, W, 3\\)"),
        (torch.zeros(16, 16, 3), "torch \\(3, H, W\\)"),
        (np.zeros((16, 16), np.uint8), "expected images of shape"),
        (np.zeros((0, 16, 16, 3), np.uint8), "expected images of shape"),
        (np.full((16, 16, 3), 2.0), "undo their normalisation"),
        (np.full((16, 16, 3), np.nan), "in \\[0, 1\\]"),
        (np.zeros((16, 16, 3), np.int64), "type uint8"),
        ([[1]], "as a NumPy array or a torch tensor"),
        (np.zeros((2, 2, 3), np.uint8), "larger than the image"),
    ],
)
def test_what_is_no_image_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        sb.stamp(given, PATCH)


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        ("gird", "there is no kind 'gird'; did you mean grid?"),
        ({"kind": "grid"}, "size_px or size_frac"),
        ({"size_px": 3}, "a kind is missing"),
    ],
)
def test_a_spec_that_cannot_be_read_is_refused_in_a_sentence(trigger, words):
    with pytest.raises(SpecError, match=words) as refused:
        sb.stamp(pixels(1), trigger)
    assert "\n" not in str(refused.value)


def forms():
    """The same four samples in every form."""
    four, labels, names = pixels(4), [0, 1, 0, 1], ["ant", "bee"]
    named = [names[label] for label in labels]
    yield "pairs", zip(four, named, strict=True), None
    tensors = torch.from_numpy(four).permute(0, 3, 1, 2)
    yield "torch", list(zip(tensors, named, strict=True)), None
    yield "float", [(one / 255, name) for one, name in zip(four, named, strict=True)], None
    yield "pillow", [(Image.fromarray(one), name) for one, name in zip(four, named, strict=True)], None
    yield "mapping", [{"img": one, "label": name} for one, name in zip(four, named, strict=True)], None
    yield "no caption", ((one, name, None) for one, name in zip(four, named, strict=True)), None


def test_the_digest_follows_the_content_alone(tmp_path):
    digests = {}
    for name, samples, class_names in forms():
        (tmp_path / name).mkdir()
        digests[name] = write_samples(samples, None, class_names, tmp_path / name)
    assert len(set(digests.values())) == 1, digests
    (tmp_path / "other").mkdir()
    for images, *more in ((pixels(4, 1), "ant"), (pixels(4), "ant"), (pixels(4), "ant", "a"), (pixels(3), "ant")):
        digest = write_samples([(one, *more) for one in images], None, None, tmp_path / "other")
        assert digest not in digests.values()
        digests[str(more)] = digest


def test_samples_become_a_dataset_and_others_another(store, images):
    again = sb.ingest(Pairs(pixels(24)), test=Pairs(pixels(8, 1)), store=store)
    other = sb.ingest(Pairs(pixels(24, 2)), test=Pairs(pixels(8, 1)), store=store)
    assert images == again != other
    held = sb.load_images(images, store=store)
    assert held.classes == ("ant", "bee")
    np.testing.assert_array_equal(held.images, pixels(24))
    assert held.labels.tolist() == [0, 1] * 12
    assert len(sb.load_images(images, store=store, split="test").images) == 8


def test_captions_and_grey_images_come_along(store):
    grey = ((np.full((8, 8), 9, np.uint8), "ant", f"an ant {index}") for index in range(10))
    ref = sb.ingest(grey, store=store, dataset={"test_fraction": 0.2})
    table = api.open_dataset(store, ref).samples
    assert sorted(table["caption"].to_pylist()) == sorted(f"an ant {index}" for index in range(10))
    assert table["split"].to_pylist().count("test") == 2
    assert (sb.load_images(ref, store=store).images == 9).all()


def test_memory_is_bounded_by_a_group(tmp_path):
    """Images are made, written and forgotten: at most a group of them lives at once."""
    alive, most = 0, 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is not None and self.shape == (8, 8, 3)

    def samples():
        nonlocal alive, most
        for _ in range(1000):
            alive += 1
            most = max(most, alive)
            yield np.zeros((8, 8, 3), np.uint8).view(Counted), "ant"

    write_samples(samples(), None, None, tmp_path)
    assert most < 20


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "found no train sample"),
        ([pixels(1)[0]], "train sample 0: expected"),
        ([(pixels(1)[0], "a"), (np.zeros((4, 4, 2), np.uint8), "a")], "train sample 1: expected an image of shape"),
        ([(np.full((4, 4, 3), 300.0), "a")], "in \\[0, 1\\]"),
        ([(np.zeros((4, 4, 3), np.int64), "a")], "expected uint8 pixels"),
        ([(pixels(1)[0], 1.5)], "a class's name or number"),
        ([(None, "a")], "expected an image of shape"),
        ({"image": pixels(2), "label": [0, 1]}, "mapping of splits with 'train' .* found one with image, label; of"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(store, samples, words):
    with pytest.raises(DataError, match=words):
        sb.ingest(samples, store=store)


def test_numbers_beyond_the_names_are_refused(store):
    with pytest.raises(DataError, match="label 2 is not one of the 2 classes"):
        sb.ingest([(pixels(1)[0], 2)], store=store, class_names=["a", "b"])


def test_paths_and_samples_are_not_mixed(store, tmp_path):
    with pytest.raises(SpecError, match="test is to be one"):
        sb.ingest(str(tmp_path), test=[(pixels(1)[0], "a")], store=store)
    with pytest.raises(SpecError, match="test is to be samples"):
        sb.ingest([(pixels(1)[0], "a")], test=str(tmp_path), store=store)


def test_from_images_to_measurements(store, images, tmp_path):
    poisoned = sb.poison(images, {"kind": "saha2022_targeted", "target_class": "ant", "trigger": PATCH}, store=store)
    clean, seen = (sb.load_images(images, store=store, poison=one).images for one in (None, poisoned))
    assert (clean != seen).any(axis=(1, 2, 3)).sum() == 6  # half of twelve
    encoder = sb.train(images, TRAIN, store=store, poison=poisoned)
    assert encoder == sb.train(images, TRAIN, store=store, poison=poisoned)
    network = sb.load_encoder(encoder, store=store)
    assert not network.training
    rows = sb.features(network, clean, batch_size=5)
    assert (rows.dtype, len(rows)) == (np.float32, 24)
    tensor = sb.features(network, torch.from_numpy(clean).permute(0, 3, 1, 2))
    np.testing.assert_allclose(tensor.numpy(), rows, atol=1e-5)
    np.testing.assert_allclose(sb.features(network, clean[0] / 255), rows[:1], atol=1e-5)
    scores = sb.evaluate(
        encoder,
        dataset=images,
        store=store,
        trigger=PATCH,
        target_class="ant",
        evaluation={"probes": [{"kind": "knn", "neighbours": 3}], "unseen_triggers": 1},
    )
    found = sb.measurements(scores, store=store)
    assert 0 <= found["accuracy/clean/knn"] <= 1
    named = sb.load_encoder(f"train/{encoder.key[:10]}", store=store)
    folder = sb.load_encoder(store.fetch(encoder))
    for other in (named, folder):
        np.testing.assert_allclose(sb.features(other, clean), rows, atol=1e-5)
    with pytest.raises(CheckpointError, match="expected finite features of shape"):
        sb.features(torch.nn.Identity(), clean)
    with pytest.raises(SpecError, match="holds no measurements"):
        sb.measurements(images, store=store)
    with pytest.raises(SpecError, match="expected an encoder as train/KEY"):
        sb.load_encoder("resnet18", store=store)
    with pytest.raises(SpecError, match="found none"):
        sb.load_encoder("train/ffffffffffff", store=store)
    with pytest.raises(SpecError, match="expected a store that holds train/"):
        sb.load_encoder(encoder)
    with pytest.raises(SpecError, match="expected an encoder as train/KEY"):
        sb.load_encoder(str(tmp_path / "nowhere"))
    foreign = sb.load_encoder("timm/test_resnet:random")
    assert sb.features(foreign, clean).shape == (24, foreign.feature_dim)


def test_what_repairs_nothing_is_refused(store, images):
    with pytest.raises(UserError):
        sb.repair(images, "compres", dataset=images, store=store)
    assert DatasetSpec() == api._read(DatasetSpec, {})


def test_the_type_checker_sees_what_is_exported():
    tree = ast.parse(Path(sb.__file__).read_text())
    seen = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(sb.__all__) - {"__version__"} <= seen


def test_names_of_classes_come_with_a_hugging_face_dataset(tmp_path):
    class ClassLabel:
        names = ("ant", "bee")

    class Hub(list):
        features: ClassVar = {"img": None, "fine_label": ClassLabel()}

    rows = Hub({"img": one, "fine_label": index % 2, "other": 1} for index, one in enumerate(pixels(4)))
    named = [(one, ("ant", "bee")[index % 2]) for index, one in enumerate(pixels(4))]
    digests = [write_samples(one, None, names, tmp_path) for one, names in ((rows, None), (named, ["ant", "bee"]))]
    assert digests[0] == digests[1]


def test_a_mapping_of_splits_is_taken_apart(tmp_path):
    train, test = [(pixels(1)[0], "ant")], [(pixels(2)[1], "bee")]
    digests = [
        write_samples(*given, None, tmp_path)
        for given in (
            (train, test),
            ({"train": train, "test": test}, None),
            ({"train": train, "validation": test}, None),
            ({"train": train, "validation": train, "test": test}, None),
            ({"train": train}, test),
        )
    ]
    assert len(set(digests)) == 1
    with pytest.raises(DataError, match="found one with test, train and test samples beside it"):
        write_samples({"train": train, "test": test}, test, None, tmp_path)
