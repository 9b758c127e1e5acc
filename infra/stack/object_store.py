"""SeaweedFS (``weed mini``): two buckets, identities that may do no more than they need, parts that trust no other."""

import json
import time
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

from infra.stack import certificates
from infra.stack.config import BUCKETS, Config, s3_environment, write_private
from infra.stack.errors import ServiceError
from infra.stack.ports import LOOPBACK
from infra.stack.service import Service, program

_LISTENERS = ("s3", "master", "volume", "filer", "admin")
_ARTIFACTS, _MLFLOW = BUCKETS
_WRITABLE_S = 30.0


def _permissions(bucket: str, *actions: str) -> list[str]:
    return [f"{action}:{bucket}" for action in actions]


_RIGHTS: Mapping[str, list[str]] = {
    "admin": ["Admin", "Read", "List", "Tagging", "Write"],  # used here only, to make the buckets
    "writer": _permissions(_ARTIFACTS, "Read", "List", "Tagging", "Write"),
    "reader": _permissions(_ARTIFACTS, "Read", "List"),
    "mlflow": _permissions(_MLFLOW, "Read", "List", "Tagging", "Write"),
}


def port_name(listener: str, kind: str) -> str:
    """The name in ``ports.DEFAULTS`` of one of SeaweedFS's listeners."""
    return (listener if listener == "s3" else f"s3_{listener}") + kind


def client(config: Config, identity: str) -> Any:
    """A boto3 client of ``identity`` that gives up soon."""
    settings = s3_environment(config, identity)
    session = boto3.session.Session(
        settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"], region_name=settings["AWS_DEFAULT_REGION"]
    )
    options = ClientConfig(
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1},
        connect_timeout=2,
        read_timeout=10,
        proxies={},
    )
    return session.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"], config=options)


def _prepare(config: Config) -> None:
    identities = []
    for name, actions in _RIGHTS.items():
        keys = {part: config.secrets[f"s3_{name}_{part}_key"] for part in ("access", "secret")}
        credentials = [{"accessKey": keys["access"], "secretKey": keys["secret"]}]
        identities.append({"name": name, "credentials": credentials, "actions": actions})
    (config.folder / "seaweed").mkdir(mode=0o700, exist_ok=True)
    write_private(config.folder / "s3.json", json.dumps({"identities": identities}, indent=2) + "\n")
    write_private(config.folder / "seaweed" / "security.toml", _security(config))


def _security(config: Config) -> str:
    """What SeaweedFS reads in the folder where it runs: its parts show each other tickets and certificates.

    So nobody else reads, changes or drops objects at the ports of the parts, and no web page gets an answer.
    """
    certificate, key = certificates.make(config.folder / "seaweed")
    key_of_tickets = config.secrets["s3_signing_key"]
    lines = ["[cors.allowed_origins]", f'values = "{config.url("s3")}"', "[grpc]", f'ca = "{certificate}"']
    for section in ("signing", "signing.read", "filer_signing", "filer_signing.read"):
        lines += [f"[jwt.{section}]", f'key = "{key_of_tickets}"']
    for part in ("master", "volume", "filer", "s3", "admin", "worker", "client"):
        lines += [f"[grpc.{part}]", f'cert = "{certificate}"', f'key = "{key}"']
    return "\n".join([*lines, ""])


def _command(config: Config) -> list[str]:
    listeners = [
        f"-{n}.port{kind.replace('_', '.')}={config.ports[port_name(n, kind)]}" for n, kind in _all_listeners()
    ]
    command = [program("weed"), "-logtostderr=true", "mini", f"-dir={config.folder / 'seaweed'}"]
    command += [f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", *listeners, f"-s3.config={config.folder / 's3.json'}"]
    command += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]  # in the folder where it runs, not in /tmp
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]
    return [*command, "-webdav=false", "-admin.ui=false", "-disableHttp", "-master.telemetry=false"]


def _all_listeners() -> list[tuple[str, str]]:
    return [(listener, kind) for kind in ("", "_grpc") for listener in _LISTENERS]


def _healthy(config: Config) -> bool:
    try:
        client(config, "admin").list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def _finish(config: Config) -> None:
    """Make the buckets, and wait for the volume that takes objects: it joins a moment after the gateway answers.

    Raises:
        ServiceError: no object can be written.
    """
    admin = client(config, "admin")
    deadline = time.monotonic() + _WRITABLE_S
    while True:
        try:
            present = {entry["Name"] for entry in admin.list_buckets()["Buckets"]}
            for bucket in BUCKETS:
                if bucket not in present:
                    admin.create_bucket(Bucket=bucket)
                admin.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
                admin.delete_object(Bucket=bucket, Key=".ready")
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise ServiceError(f"SeaweedFS takes no object: {config.redact(str(error))}") from error
        time.sleep(0.1)


SERVICE = Service(
    name="s3",
    ports=tuple(port_name(listener, kind) for listener, kind in _all_listeners()),
    needs=(),
    url=lambda config: config.url("s3"),
    command=_command,
    environment=lambda config: {},
    healthy=_healthy,
    prepare=_prepare,
    finish=_finish,
    cwd=lambda config: config.folder / "seaweed",
    grace_s=20.0,
)
