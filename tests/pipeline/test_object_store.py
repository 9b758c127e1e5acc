"""The whole chain on a real S3 server: artifacts in the bucket, workers reach them, the secret goes nowhere."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.attacks.saha2022 import Saha2022UntargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec
from ssl_backdoor.stages import IngestStage, PoisonStage, StageCall, run_stage
from ssl_backdoor.store import open_store
from tests.support.command_server import TINY, shell

pytestmark = [pytest.mark.services, pytest.mark.slow]


def test_poisoning_brings_the_table_and_the_planned_images_alone(object_store, tmp_path, monkeypatch):
    for name, value in (object_store.environment | {"SSL_BACKDOOR_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    source = ScenesSourceSpec(train_per_class=40, test_per_class=2, side_px=16)
    dataset = DatasetSpec(source=source, samples_per_shard=16)
    attack = Saha2022UntargetedSpec(trigger=GridTriggerSpec(size_px=4), poison_fraction_of_dataset=0.1)
    digests = []
    for uri in (str(tmp_path / "store"), f"s3://{object_store.bucket}/few"):
        store = open_store(uri)
        images = run_stage(StageCall(IngestStage(dataset=dataset), source="scenes"), store).ref
        poisoned = run_stage(StageCall(PoisonStage(attack=attack, seed=0), {"dataset": images}), store).ref
        digests.append(store.manifest(poisoned).digest)
    assert digests[0] == digests[1]
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["samples.parquet"]
    manifest = store.manifest(images)
    shard = next(name for name in sorted(manifest.files) if name.startswith("shards/train"))
    key = f"few/ingest/{images.key}/{manifest.parts}/{shard}"
    object_store.client().put_object(Bucket=object_store.bucket, Key=key, Body=bytes(manifest.files[shard].bytes))
    with pytest.raises(DataError, match="is not the one that was ingested"):
        run_stage(StageCall(PoisonStage(attack=attack, seed=1), {"dataset": images}), store)


def test_experiment_on_s3_and_no_secret_in_any_file(object_store, tmp_path):
    uri = f"s3://{object_store.bucket}/chain"
    with shell(tmp_path, **object_store.environment, SSL_BACKDOOR_CACHE=str(tmp_path / "cache")) as run:
        outcome = run("run", "demo", "--methods", "byol", *TINY, "--set", "defences=[]", "--store", uri, "--json")
        assert outcome.code == 0, outcome.stderr
        result = json.loads(outcome.stdout)
        wrong = run("ingest", "demo", *TINY, "--store", "s3://no-such-bucket/chain")
    manifests = [key for key in object_store.keys("chain/") if key.endswith("manifest.json")]
    stages = Counter(key.split("/")[1] for key in manifests)
    assert stages == {"ingest": 1, "poison": 1, "train": 2, "evaluate": 2, "report": 1}
    assert Path(result["artifacts"]["report"]).is_file()
    assert wrong.code == 2
    assert "no-such-bucket" in wrong.stderr
    secret = object_store.secret_key.encode()
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert holders == []
    for text in (outcome.stdout, outcome.stderr, wrong.stderr):
        assert object_store.secret_key not in text
    for key in manifests:
        body = object_store.client().get_object(Bucket=object_store.bucket, Key=key)["Body"].read()
        assert secret not in body
