from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_files import cats_and_dogs, write_folder

from ssl_backdoor.data.images import decode
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.data.stickers import bears_sticker, put_sticker
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import DatasetSpec, NoStickersSpec, PatchStickersSpec

STYLE = GridTriggerSpec(size_frac=0.375, train_location=(0.0, 1.0))
HALF = PatchStickersSpec(style=STYLE, train_frac=0.5)


def ingested(data: Path, out: Path, **changes: object) -> dict[str, np.ndarray]:
    """The stored images by key."""
    spec = DatasetSpec.model_validate({"frame_px": 16, **changes})
    summary = ingest(spec, str(data), out)
    table = pq.read_table(out / "samples.parquet")
    images = {k: decode(d, 10**6, 16) for k, d in zip(table["key"].to_pylist(), read_bytes(out, table), strict=True)}
    assert summary.get("num_stickers", 0) == sum(
        bears_sticker(key, spec.stickers) for key in images if key.startswith("train")
    )
    return images


def test_a_share_of_the_training_images_of_all_classes_bears_one_and_no_test_image(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", cats_and_dogs(40, 20))
    plain, with_some = ingested(data, tmp_path / "a"), ingested(data, tmp_path / "b", stickers=HALF)
    assert plain.keys() == with_some.keys()
    changed = {key for key in plain if (plain[key] != with_some[key]).any()}
    assert changed == {key for key in plain if key.startswith("train") and bears_sticker(key, HALF)}
    for name in ("cat", "dog"):
        assert 10 <= sum(f"-{name}-" in key for key in changed) <= 30
    for key in changed:
        rows, columns = np.nonzero((plain[key] != with_some[key]).any(axis=2))
        assert np.ptp(rows) < 6
        assert np.ptp(columns) < 6


def test_a_sticker_follows_from_its_key_alone_and_each_has_its_own_pattern() -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    shown = [put_sticker(grey, f"key-{number}", HALF) for number in range(50)]
    patterns = {image[(image != 128).all(axis=2)].tobytes() for image in shown}
    assert len(patterns) == 50
    assert STYLE.render(6).reshape(-1, 3).tobytes() not in patterns
    np.testing.assert_array_equal(shown[7], put_sticker(grey, "key-7", HALF))
    moved = put_sticker(grey, "key-7", HALF.model_copy(update={"seed": 1}))
    assert (moved != shown[7]).any()


def test_what_cannot_be_a_sticker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    assert not bears_sticker("key", NoStickersSpec())
    with pytest.raises(SpecError, match="larger than the image"):
        put_sticker(grey, "key", HALF.model_copy(update={"style": GridTriggerSpec(size_px=17)}))
    monkeypatch.setattr(GridTriggerSpec, "unseen", lambda self, seed: None)
    with pytest.raises(SpecError, match="a style that has other patterns, and trigger grid has none"):
        put_sticker(grey, "key", HALF)
