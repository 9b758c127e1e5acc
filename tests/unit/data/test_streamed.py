"""Streaming gives what holding gives, row by row, whatever is read ahead."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.data.streamed import Streamed, load_or_stream
from ssl_backdoor.errors import DataError
from ssl_backdoor.progress import silent
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.tables import OVERLAY
from tests.support.tiny_sets import tiny_dataset


def overlay_of(folder: Path, dataset: Dataset) -> Overlay:
    """Rows 3 and 0 replaced by test images, and two test images added; the bytes are another dataset's."""
    other = tiny_dataset(folder, size=(20, 20), separable=True)
    sources, rows = dataset.samples["key"].to_pylist(), []
    for number, (action, place) in enumerate((("poison", 3), ("poison", 0), ("add", 1), ("add", 19))):
        row = other.samples.slice(5 * number, 1).to_pylist()[0]
        key = sources[place] if action == "poison" else f"poison-{number:06d}"
        what = {"key": key, "source_key": sources[place], "action": action, "caption": "a bird", "sub_seed": 0}
        rows.append({name: (row | what).get(name) for name in OVERLAY.names} | {"box_x": -1})
    return Overlay(other.folder, pa.Table.from_pylist(rows, schema=OVERLAY))


@pytest.mark.parametrize("with_overlay", [False, True])
def test_the_same_pixels_as_the_resident_split(tmp_path: Path, with_overlay: bool) -> None:
    dataset = tiny_dataset(tmp_path / "base", train_per_class=40, spec=DatasetSpec(samples_per_shard=7, frame_px=16))
    overlay = overlay_of(tmp_path / "poison", dataset) if with_overlay else None
    resident = load_resident(dataset, "train", overlay).images
    streamed = Streamed(dataset, "train", overlay)
    assert len(streamed) == len(resident) == (122 if with_overlay else 120)
    assert streamed.shape == resident.shape
    assert streamed.nbytes == resident.nbytes
    order = torch.randperm(len(resident), generator=torch_generator(0, "order"))
    for rows in (order, order[:50], order[-1:], torch.tensor([0, 0, 3, 119, 0]), torch.arange(0)):
        batch = streamed[rows]
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, resident[rows])
    assert torch.equal(Streamed(dataset, "test")[torch.arange(12)], load_resident(dataset, "test").images)


def test_reading_ahead_changes_nothing_and_each_row_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset(tmp_path, train_per_class=20)
    resident, streamed = load_resident(dataset, "train").images, Streamed(dataset, "train")
    decoded = []
    real = Streamed._decode
    monkeypatch.setattr(Streamed, "_decode", lambda self, one: decoded.append(one.key) or real(self, one))
    steps = torch.randperm(60, generator=torch_generator(0, "order")).split(20)
    for step, rows in enumerate(steps):
        streamed.prefetch(rows)
        if step + 1 < len(steps):
            streamed.prefetch(steps[step + 1])
            streamed.prefetch(steps[step + 1])
        assert torch.equal(streamed[rows], resident[rows])
    assert len(decoded) == len(set(decoded)) == 60
    for rows in steps:  # more than are kept: the oldest is given up, and read when asked for
        streamed.prefetch(rows)
    assert torch.equal(streamed[steps[0]], resident[steps[0]])


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "a", size=(16, 16))
    odd = tiny_dataset(tmp_path / "b", size=(16, 20))
    data = next(read_bytes(odd.folder, odd.samples.slice(4, 1)))
    (dataset.folder / "shards/odd.tar").write_bytes(data)
    rows = dataset.samples.to_pylist()
    rows[4] |= {"shard": "shards/odd.tar", "offset": 0, "size": len(data)}
    streamed = Streamed(
        Dataset(
            dataset.folder, pa.Table.from_pylist(rows, schema=dataset.samples.schema), dataset.classes, dataset.spec
        ),
        "train",
    )
    assert streamed[torch.tensor([0, 3])].shape == (2, 3, 16, 16)
    streamed.prefetch(torch.tensor([0, 4]))
    with pytest.raises(DataError, match=r"'train-cat-00004' has 20 x 16 px and the first of all has 16 x 16 px"):
        streamed[torch.tensor([0, 4])]


def test_what_fits_is_held(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    resident = load_resident(dataset, "train").images
    at_the_limit = load_or_stream(dataset, "train", None, resident.nbytes, silent)
    assert isinstance(at_the_limit, torch.Tensor)
    assert torch.equal(at_the_limit, resident)
    below = load_or_stream(dataset, "train", None, resident.nbytes - 1)
    assert isinstance(below, Streamed)
    assert torch.equal(below[torch.arange(len(resident))], resident)
