import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from ssl_backdoor.data.shards import Location, ShardWriter, read_bytes
from ssl_backdoor.errors import DataError

SAMPLES = [(f"k-{index}", bytes([index]) * size, {"label": index}) for index, size in enumerate([0, 1, 511, 512, 513])]


def write(folder: Path, samples_per_shard: int = 2) -> list[Location]:
    with ShardWriter(folder, "shards/train", samples_per_shard) as writer:
        return [writer.write(key, data, "png", meta) for key, data, meta in SAMPLES]


def rows(locations: list[Location]) -> pa.Table:
    return pa.table({name: [getattr(at, name) for at in locations] for name in Location._fields})


def test_tarfile_reads_what_was_written(tmp_path: Path) -> None:
    locations = write(tmp_path)
    assert [at.shard for at in locations] == [f"shards/train-00000{index // 2}.tar" for index in range(5)]
    found: dict[str, bytes] = {}
    for shard in sorted({at.shard for at in locations}):
        with tarfile.open(tmp_path / shard) as tar:
            for info in tar:
                assert (info.mtime, info.mode, info.uid, info.gid, info.type) == (0, 0o644, 0, 0, tarfile.REGTYPE)
                content = tar.extractfile(info)
                assert content is not None
                found[info.name] = content.read()
    for key, data, meta in SAMPLES:
        assert found[f"{key}.png"] == data
        assert json.loads(found[f"{key}.json"]) == meta


def test_the_headers_are_those_that_tarfile_would_write(tmp_path: Path) -> None:
    write(tmp_path, samples_per_shard=9)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data, meta in SAMPLES:
            for name, content in (
                (f"{key}.png", data),
                (f"{key}.json", json.dumps(meta, separators=(",", ":")).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    written = (tmp_path / "shards/train-000000.tar").read_bytes()
    assert written == expected.getvalue()[: len(written)]
    assert not any(expected.getvalue()[len(written) :])  # tarfile pads to a longer record


def test_a_second_run_writes_the_same_bytes(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write(tmp_path / run)
    for path in (tmp_path / "one/shards").iterdir():
        assert path.read_bytes() == (tmp_path / "two/shards" / path.name).read_bytes()


def test_webdataset_reads_them(tmp_path: Path) -> None:
    write(tmp_path, samples_per_shard=9)
    with (tmp_path / "shards/train-000000.tar").open("rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": "shard", "stream": stream}])))
    assert [(sample["__key__"], sample["png"]) for sample in samples] == [(key, data) for key, data, _ in SAMPLES]


def test_read_bytes_follows_the_rows_in_any_order(tmp_path: Path) -> None:
    locations = write(tmp_path)
    order = [4, 0, 3, 3, 1, 2]
    table = rows([locations[index] for index in order])
    assert list(read_bytes(tmp_path, table)) == [SAMPLES[index][1] for index in order]


def test_a_truncated_or_missing_shard_is_named(tmp_path: Path) -> None:
    locations = write(tmp_path)
    shard = tmp_path / locations[4].shard
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=r"shards/train-000002\.tar ends before"):
        list(read_bytes(tmp_path, rows(locations)))
    shard.unlink()
    with pytest.raises(DataError, match="cannot open the shard"):
        list(read_bytes(tmp_path, rows(locations)))


def test_names_that_ustar_cannot_hold_are_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "s", 2) as writer:
        with pytest.raises(ValueError, match="1 to 100 bytes"):
            writer.write("k" * 97, b"", "png", {})
        writer.write("k" * 95, b"x", "png", {})  # with .json exactly 100
    with tarfile.open(tmp_path / "s-000000.tar") as tar:
        assert tar.getnames() == ["k" * 95 + ".png", "k" * 95 + ".json"]
