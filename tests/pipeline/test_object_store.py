"""The whole chain on a real S3 server: artifacts in the bucket, workers reach them, the secret goes nowhere."""

import json
from collections import Counter
from pathlib import Path

import pytest
from command_server import TINY, shell

pytestmark = [pytest.mark.services, pytest.mark.slow]


def test_experiment_on_s3_and_no_secret_in_any_file(object_store, tmp_path):
    uri = f"s3://{object_store.bucket}/chain"
    with shell(tmp_path, **object_store.environment, SSL_BACKDOOR_CACHE=str(tmp_path / "cache")) as run:
        outcome = run("run", "demo", *TINY, "--set", 'defence={"kind":"none"}', "--store", uri, "--json")
        assert outcome.code == 0, outcome.stderr
        result = json.loads(outcome.stdout)
        wrong = run("ingest", "demo", *TINY, "--store", "s3://no-such-bucket/chain")
    manifests = [key for key in object_store.keys("chain/") if key.endswith("manifest.json")]
    stages = Counter(key.split("/")[1] for key in manifests)
    assert stages == {"ingest": 1, "poison": 3, "train": 5, "evaluate": 6, "report": 1}
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
