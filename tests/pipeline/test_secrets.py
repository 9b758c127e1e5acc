"""Secrets stay where they are needed: after runs that end well, badly and not at all, no place that keeps text has one.

Each secret is looked for as it is, quoted for a URL, in hexadecimal and in base64 wherever that may begin. That the
search can find is shown by a word planted in every place, each time in another of these shapes.
"""

import base64
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import pytest

from infra.stack import http, object_store, postgres, ray_head, service
from tests.support.command_server import TINY_SETTINGS

pytestmark = [pytest.mark.services, pytest.mark.slow]
PLANTABLE = {"files", "ray's files", "ray's state", "prefect's database", "mlflow's database", "artifacts"}
PLANTABLE |= {"mlflow's artifacts", "command lines"}
KEPT_IN = ("config.json", "s3.json", "security.toml")
COMMAND = "import sys; from flows.cli import main; main(sys.argv[1:])"
MLFLOW_PLANT = """
import mlflow, sys
client = mlflow.MlflowClient()
client.set_terminated(client.create_run(client.create_experiment("planted"), tags={"planted": sys.argv[1]}).info.run_id)
"""
RAY_STATE = """
import os, sys, ray
from ray._private.state import state
from ray._raylet import GcsClient
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
client = GcsClient(os.environ["RAY_ADDRESS"])
client.internal_kv_put(b"planted", sys.argv[1].encode(), True, None)
for space in (None, b"fun", b"job", b"session", b"cluster", b"serve", b"_ray_internal"):
    for key in client.internal_kv_keys(b"", space):
        print(key, client.internal_kv_get(key, space))
print(state.job_table(), state.actor_table(None), state.node_table(), state.chrome_tracing_dump())
"""


def shapes(secret: str) -> set[bytes]:
    """What ``secret`` looks like to whoever kept it."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), raw.hex().encode(), raw.hex().upper().encode()}
    for before in range(3):  # base64 is cut where only characters of the secret itself tell its letters
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(before) + raw)[first:last])
    return found


def found_in(places: Iterator[tuple[str, bytes]], wanted: Mapping[str, str]) -> set[tuple[str, str]]:
    """(place, name of the secret) wherever one of ``wanted`` is."""
    known = [(name, shape) for name, secret in wanted.items() for shape in shapes(secret)]
    return {(place, name) for place, text in places for name, shape in known if shape in text}


def files(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or a socket
            if path.is_file() and path.name not in KEPT_IN:
                yield path.read_bytes()


def rows(stack, database: str) -> Iterator[bytes]:
    """Every row of a database, as text."""
    secret = stack.config.secrets[f"postgres_{database}_password"]
    with (
        contextlib.closing(postgres.connect(stack.config, database, secret, database)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tableowner = current_user")
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT coalesce(string_agg(t::text, chr(10)), '') FROM {table} t")
            yield cursor.fetchone()[0].encode()


def objects(stack, bucket: str) -> Iterator[bytes]:
    client = object_store.client(stack.config, "admin")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            yield entry["Key"].encode() + b"\n" + client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def places(stack, planted: str) -> Iterator[tuple[str, bytes]]:
    """Every place that keeps text, by name."""
    yield from (("files", text) for text in files(stack.home))
    yield from (("ray's files", text) for text in files(ray_head.temp_folder(stack.config)))
    yield from (("prefect's database", text) for text in rows(stack, "prefect"))
    yield from (("mlflow's database", text) for text in rows(stack, "mlflow"))
    yield from (("artifacts", text) for text in objects(stack, "artifacts"))
    yield from (("mlflow's artifacts", text) for text in objects(stack, "mlflow"))
    yield from (("command lines", text) for text in command_lines())
    state = stack.client(RAY_STATE, planted)
    assert state.returncode == 0, state.stderr
    yield "ray's state", state.stdout.encode()
    yield "prefect's settings", http.ask_prefect(stack.config, "admin/settings")[1].encode()


@contextlib.contextmanager
def planted(stack, word: str) -> Iterator[None]:
    """``word`` in every place where it is not yet, each time in another shape."""
    logs = (stack.folder / "logs" / "planted.log", ray_head.temp_folder(stack.config) / "planted.log")
    logs[0].write_text(f"before{quote(word, safe='')}after")
    logs[1].write_bytes(base64.b64encode(f"Basic {word}, or so".encode()))
    buckets = (("writer", "artifacts"), ("mlflow", "mlflow"))
    for identity, bucket in buckets:
        object_store.client(stack.config, identity).put_object(Bucket=bucket, Key="planted", Body=word.encode())
    assert stack.client(MLFLOW_PLANT, word.encode().hex()).returncode == 0
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", base64.b64encode(word.encode()).decode()]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            yield
            process.stdin.close()
    finally:
        for log in logs:
            log.unlink()
        for identity, bucket in buckets:
            object_store.client(stack.config, identity).delete_object(Bucket=bucket, Key="planted")


def profile(file: Path, canaries: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the standard chain finds the canaries; the environment itself holds a path alone."""
    file.touch(mode=0o600)
    named = {"aws_access_key_id": "canary", **canaries}
    file.write_text("[canary]\n" + "".join(f"{name}={value}\n" for name, value in named.items()))
    nothing = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    return {**nothing, "AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_PROFILE": "canary"}


def runs_that_fail(stack, word: str, environment: Mapping[str, str]) -> list[str]:
    """One refused, one that a stage fails with a traceback, and one without a store; their last messages."""
    asked = {"settings": [*TINY_SETTINGS, f"variant={word}"]}
    too_much = 'train.method={"kind":"moco_v2","queue_size":2097152,"embedding_dim":16384}'  # 128 GiB
    unforeseen = {"methods": "byol", "settings": [*TINY_SETTINGS, too_much]}
    runs = [stack.queue("experiment/demo", asked, environment), stack.queue("experiment/demo", unforeseen)]
    ended = [stack.ended(run, timeout_s=400)[0] for run in runs]
    leader = service.running(stack.config, "s3")
    assert leader is not None
    os.kill(leader.pid, signal.SIGKILL)
    try:
        ended += stack.ended(stack.queue("experiment/demo", asked), timeout_s=400)
    finally:
        assert stack("up")[0] == 0
    assert {run["state"]["type"] for run in ended} == {"FAILED"}
    return [run["state"]["message"] for run in ended]


def shells_that_fail(stack, password: str) -> Iterator[bytes]:
    """What commands write that were given a password in an address."""
    quoted = quote(password, safe="")
    for place, environment in (
        ("s3://artifacts/lab", {"AWS_ENDPOINT_URL": f"http://user:{quoted}@127.0.0.1:1"}),
        (f"s3://key:{password}@artifacts/lab", {}),
        (f"s3://{quoted}:x@artifacts/lab", {}),
        (f"http://user:{quoted}@127.0.0.1:1/", {}),
        ("", {"MLFLOW_TRACKING_URI": f"http://user:{quoted}@127.0.0.1:1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}),
    ):
        done = stack.client(COMMAND, *(["ingest", "demo", "--store", place] if place else ["reindex"]), **environment)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith("ssl-backdoor: ")
        assert "Traceback" not in done.stderr
        yield (done.stdout + done.stderr).encode()


def test_no_secret_is_kept_anywhere(stack, demo, tmp_path):
    word, password, *keys = (f"{secrets.token_hex(12)}/+={secrets.token_hex(4)}" for _ in range(4))
    canaries = dict(zip(("aws_secret_access_key", "aws_session_token"), keys, strict=True))
    refused, unforeseen, away = runs_that_fail(stack, word, profile(tmp_path / "profile", canaries))
    assert "refuses these credentials" in refused
    assert "unexpected RuntimeError" in unforeseen
    assert "unexpected\n  Traceback (most recent call last)" in stack.log("worker")
    assert "cannot reach s3://artifacts/lab" in away
    shells = [("a shell", text) for text in shells_that_fail(stack, password)]
    wanted = {**stack.config.secrets, **canaries, "password": password, "planted": word}
    with planted(stack, word):
        found = found_in(chain(places(stack, word), shells), wanted)
    assert {(place, name) for place, name in found if name != "planted"} == set()
    assert {place for place, _ in found} == PLANTABLE
