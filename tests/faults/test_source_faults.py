"""Data on a real object store, away, slow, refused, changed, gone or half written: a sentence, and then again."""

import io
import json
import tarfile

import pytest
import torch

from ssl_backdoor.data import remote
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.data.sources import locate, source_digest
from ssl_backdoor.data.stored import open_dataset, open_lazy_dataset, open_overlay
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.errors import DataError, SourceAwayError
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.stages import IngestStage, PoisonStage, StageCall, run_stage
from ssl_backdoor.store import open_store, s3_client
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.tiny_sets import tiny_dataset

pytestmark = [pytest.mark.services, pytest.mark.slow]

SHARDS, EACH = 3, 8
SPEC = DatasetSpec(test_fraction=0.25)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> dict[str, bytes]:
    """Shards of image-text pairs, by name."""
    made = tiny_dataset(tmp_path_factory.mktemp("images"), train_per_class=8, test_per_class=0, size=(16, 16))
    images, packed = list(made.read(made.samples)), {}
    for shard in range(SHARDS):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for number in range(shard * EACH, (shard + 1) * EACH):
                about = json.dumps({"caption": f"picture {number}", "label": number % 3}).encode()
                for suffix, data in (("png", images[number]), ("json", about)):
                    info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        packed[f"{shard:05d}.tar"] = file.getvalue()
    return packed


@pytest.fixture
def proxy(object_store, environment, prefix, shards, monkeypatch):
    """The shards under ``prefix``, reached through a proxy, with short and few tries."""
    for name, data in shards.items():
        object_store.client().put_object(Bucket=object_store.bucket, Key=f"{prefix}/{name}", Body=data)
    monkeypatch.setattr(remote, "_transports", {})
    monkeypatch.setattr(s3_client, "TIMEOUT_S", 0.7)
    monkeypatch.setattr("ssl_backdoor.data.remote_s3.TRIES", 2)
    monkeypatch.setenv("SSL_BACKDOOR_SOURCE_CACHE_GB", "0")
    with fault_proxy(object_store.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def data(object_store, prefix) -> str:
    return f"s3://{object_store.bucket}/{prefix}/{{00000..{SHARDS - 1:05d}}}.tar"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def ingested(store, data, spec=SPEC):
    return run_stage(StageCall(IngestStage(dataset=spec), data=data), store).ref


@pytest.mark.parametrize("cache_gb", ["0", "1"])
def test_the_same_bytes_from_s3_as_from_a_disk(proxy, data, store, shards, tmp_path, monkeypatch, cache_gb):
    monkeypatch.setenv("SSL_BACKDOOR_SOURCE_CACHE_GB", cache_gb)
    for name, content in shards.items():
        (tmp_path / name).write_bytes(content)
    local = ingested(store, data.replace(data[: data.index("{")], f"{tmp_path}/"))
    for given in (data, data.rpartition("/")[0]):
        found = {name: ingested(store, given, SPEC.model_copy(update={"copy": name})) for name in (True, False)}
        files = store.manifest(found[True]).files
        assert store.manifest(local).files.items() <= files.items()
        assert store.manifest(found[True]).summary["sources"][0][:2] == ["00000.tar", len(shards["00000.tar"])]
        one, two = open_dataset(store, local), open_dataset(store, found[False])
        assert set(store.manifest(found[False]).files) == files.keys() - {
            name for name in files if name.startswith("shards/")
        }
        patch = GridTriggerSpec(size_px=4)
        attack = Carlini2022BackdoorSpec(target_class="1", trigger=patch, num_poisons=5)
        poisons = [
            run_stage(StageCall(PoisonStage(attack=attack, seed=0), {"dataset": images}), store).ref
            for images in (local, found[False])
        ]
        assert store.manifest(poisons[0]).digest == store.manifest(poisons[1]).digest
        overlay = open_overlay(store, poisons[1])
        whole = load_resident(one, "train", overlay).images
        assert torch.equal(whole, load_resident(two, "train", overlay).images)
        order = torch.arange(len(whole)).flip(0)
        assert torch.equal(whole[order], Streamed(two, "train", overlay)[order])


def test_poisoning_an_index_reads_the_images_it_needs_alone(proxy, data, store):
    images = ingested(store, data, SPEC.model_copy(update={"copy": False}))
    proxy.seen.clear()
    attack = Carlini2022BackdoorSpec(target_class="1", trigger=GridTriggerSpec(size_px=4), num_poisons=2)
    run_stage(StageCall(PoisonStage(attack=attack, seed=0), {"dataset": images}), store)
    assert proxy.seen == ["get", "get"]


@pytest.mark.parametrize(
    ("kind", "way", "sentence"),
    [
        ("get", "refuse", "answered SlowDown"),
        ("get", "stall", "cannot reach s3://artifacts"),
        ("get", "shorten", "cannot use s3://artifacts"),
        ("list", "stall", "cannot reach s3://artifacts"),
    ],
)
def test_a_source_that_is_away_is_a_sentence_and_again_comes_through(proxy, data, store, kind, way, sentence):
    spec = SPEC.model_copy(update={"copy": False})
    (fault,) = proxy.add(Fault(kind, way))
    with pytest.raises(SourceAwayError, match=sentence) as caught:
        ingested(store, data, spec)
    assert "\n" not in str(caught.value)
    assert store.keys("ingest") == ()
    assert fault.met > 1
    fault.times = 0
    ref = ingested(store, data, spec)
    if kind == "get":  # the same where the index is read
        dataset = open_dataset(store, ref)
        fault.times = fault.met + 100
        with pytest.raises(SourceAwayError, match=sentence):
            list(dataset.read(dataset.samples))
        fault.times = 0
        assert len(list(dataset.read(dataset.samples))) == SHARDS * EACH


def test_a_source_that_falters_is_waited_for(proxy, data, store, monkeypatch):
    monkeypatch.setattr("ssl_backdoor.data.remote_s3.TRIES", 4)
    ways = ("refuse", "drop", "shorten", "stall")
    proxy.add(*(Fault("get", way, times=1) for way in ways), Fault("list", "refuse", times=1))
    assert store.manifest(ingested(store, data)).summary["num_train"] == 18


def test_refused_credentials_and_what_is_not_there(proxy, data, store, monkeypatch, environment):
    with pytest.raises(DataError, match=r"there is nothing at s3://.*/00003\.tar \(1 of 2 names of the pattern\)"):
        locate(data.replace("00000..00002", "00002..00003"))
    with pytest.raises(DataError, match="there is nothing at s3://artifacts/nowhere"):
        locate("s3://artifacts/nowhere")
    with pytest.raises(DataError, match="expected the bucket of s3://no-such-bucket at http"):
        locate("s3://no-such-bucket/x.tar")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DataError, match="refuses these credentials") as caught:
        ingested(store, data)
    assert environment["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    assert store.keys("ingest") == ()


def test_a_shard_that_changes_during_the_ingest_is_found(proxy, data, store, object_store, prefix, shards):
    spec, key = SPEC, f"{prefix}/00002.tar"

    def change() -> None:
        object_store.client().put_object(Bucket=object_store.bucket, Key=key, Body=shards["00001.tar"])

    before = source_digest(spec, data)
    proxy.add(Fault("get", "pass", times=1, ending="00000.tar", before=change))
    with pytest.raises(DataError, match=r"00002\.tar changed while it was used"):
        ingested(store, data, spec)
    assert store.keys("ingest") == ()
    with pytest.raises(DataError, match="changed since this run began"):
        run_stage(StageCall(IngestStage(dataset=spec), data=data, source=before), store)
    assert source_digest(spec, data) != before
    object_store.client().put_object(Bucket=object_store.bucket, Key=key, Body=shards["00002.tar"])
    ingested(store, data, spec)


@pytest.mark.parametrize("change", ["another", "gone", "shorter"])
def test_a_shard_that_changed_since_it_was_indexed_is_never_trained_on(
    proxy, data, store, object_store, prefix, shards, change
):
    images = ingested(store, data, SPEC.model_copy(update={"copy": False}))
    dataset, place = open_dataset(store, images), {"Bucket": object_store.bucket, "Key": f"{prefix}/00001.tar"}
    if change == "gone":
        object_store.client().delete_object(**place)
    else:
        whole = shards["00001.tar"]
        body = whole[:1024] if change == "shorter" else whole.replace(b"picture", b"PICTURE")
        object_store.client().put_object(**place, Body=body)
    told = {"another": "changed while it was used", "gone": "is gone: restore it", "shorter": "changed|is shorter"}
    for one in (dataset, open_lazy_dataset(store, images)):
        with pytest.raises(DataError, match=told[change]):
            list(one.read(dataset.samples))
    with pytest.raises(DataError, match=r"is not the file that was indexed|there is nothing at"):
        open_dataset(store, images)
    object_store.client().put_object(**place, Body=shards["00001.tar"])
    assert len(list(open_dataset(store, images).read(dataset.samples))) == SHARDS * EACH


def test_a_half_written_shard_is_a_sentence_and_nothing_is_made(proxy, data, store, object_store, prefix, shards):
    for content, sentence in ((shards["00001.tar"][:9000], "truncated or damaged"), (b"", "is empty")):
        place = {"Bucket": object_store.bucket, "Key": f"{prefix}/00001.tar"}
        object_store.client().put_object(**place, Body=content)
        for is_copied in (True, False):
            with pytest.raises(DataError, match=rf"00001\.tar {sentence}|00001\.tar is {sentence}"):
                ingested(store, data, SPEC.model_copy(update={"copy": is_copied}))
    assert store.keys("ingest") == ()
