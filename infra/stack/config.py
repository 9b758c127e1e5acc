"""The stack's folder and ``config.json`` in it: ports and generated secrets, readable by their owner alone."""

import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.stack import ports
from ssl_backdoor.errors import StoreError
from tasks.ray_settings import RAY_CLOSED

ROOT = Path(__file__).resolve().parents[2]
BUCKETS = ("artifacts", "mlflow")
IDENTITIES = ("admin", "writer", "reader", "mlflow")
TELEMETRY_OFF: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_LATER = ("prefect_password", "mlflow_password", "s3_signing_key")
"""Secrets that homes of older versions have none of."""
SECRETS = (
    "postgres_password",
    "postgres_prefect_password",
    "postgres_mlflow_password",
    *(f"s3_{name}_{part}" for name in IDENTITIES for part in ("access_key", "secret_key")),
    "ray_token",
    *_LATER,
)
USER = "lab"
"""Who logs in to Prefect and MLflow."""


@dataclass(frozen=True)
class Config:
    """One stack: its folder, its ports, its secrets. Never printed whole: ``repr`` leaves the secrets out.

    ``hosts`` names the listeners that are elsewhere than on loopback, which containers are for each other.
    """

    folder: Path
    ports: Mapping[str, int]
    secrets: Mapping[str, str]
    hosts: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Config(folder={str(self.folder)!r})"

    @property
    def home(self) -> Path:
        """The home folder the stack belongs to."""
        return self.folder.parent

    def url(self, name: str) -> str:
        """HTTP address of the listener ``name``."""
        return f"http://{self.address(name)}"

    def address(self, name: str) -> str:
        """``host:port`` of the listener ``name``."""
        return f"{self.hosts.get(name, ports.LOOPBACK)}:{self.ports[name]}"

    def log(self, service: str) -> Path:
        """Where ``service`` writes its log."""
        return self.folder / "logs" / f"{service}.log"

    def redact(self, text: str) -> str:
        """``text`` without any secret of this stack."""
        for secret in self.secrets.values():
            text = text.replace(secret, "***")
        return text


def folder_of(environ: Mapping[str, str]) -> Path:
    """The stack's folder: ``stack`` under ``SSL_BACKDOOR_HOME``."""
    return Path(environ.get("SSL_BACKDOOR_HOME") or ".lab").resolve() / "stack"


def client_environment(config: Config) -> dict[str, str]:
    """What a shell or a worker needs to find every service."""
    return {
        "SSL_BACKDOOR_HOME": str(config.home),
        "SSL_BACKDOOR_STORE": f"s3://{BUCKETS[0]}/lab",
        "PREFECT_API_URL": f"{config.url('prefect')}/api",
        "PREFECT_API_AUTH_STRING": prefect_login(config),
        "PREFECT_HOME": str(config.home / "prefect"),
        "PREFECT_CLI_WRAP_LINES": "false",  # an address that `--watch` shows stays in one piece
        "MLFLOW_TRACKING_URI": config.url("mlflow"),
        **mlflow_login(config),
        "RAY_ADDRESS": config.address("ray"),
        **ray_environment(config),
        **s3_environment(config, "writer"),
        **TELEMETRY_OFF,
    }


def prefect_login(config: Config) -> str:
    """What Prefect's server asks for, of programs and on its page."""
    return f"{USER}:{config.secrets['prefect_password']}"


def mlflow_login(config: Config) -> dict[str, str]:
    """MLflow's standard variables of a user and a password."""
    return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": config.secrets["mlflow_password"]}


def ray_environment(config: Config) -> dict[str, str]:
    """The token, and the switches that keep every Ray process on loopback, and behind the token."""
    return {**RAY_CLOSED, "RAY_AUTH_TOKEN": config.secrets["ray_token"]}


def s3_environment(config: Config, identity: str) -> dict[str, str]:
    """The standard AWS variables of one identity."""
    return {
        "AWS_ENDPOINT_URL": config.url("s3"),
        "AWS_ACCESS_KEY_ID": config.secrets[f"s3_{identity}_access_key"],
        "AWS_SECRET_ACCESS_KEY": config.secrets[f"s3_{identity}_secret_key"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def load(folder: Path) -> Config | None:
    """The stack kept in ``folder``; None where there is none. A secret that its version did not know is empty.

    Raises:
        StoreError: there is one, and it cannot be read.
    """
    path = folder / "config.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        known = dict.fromkeys(_LATER, "") | dict(kept["secrets"])
        secrets_kept = {name: str(known[name]) for name in SECRETS}
        config = Config(folder, {n: int(kept["ports"][n]) for n in ports.DEFAULTS}, secrets_kept)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{str(path)!r} cannot be read as a stack's configuration ({type(error).__name__}): "
            "restore it, or remove the whole folder to begin anew"
        ) from error
    return config


def save(config: Config) -> None:
    """Write ``config.json`` whole or not at all, mode 0600."""
    content = {
        "ports": dict(config.ports),
        "secrets": dict(config.secrets),
        "environment": client_environment(config),
    }
    write_private(config.folder / "config.json", json.dumps(content, indent=2) + "\n")


def new(folder: Path, chosen: Mapping[str, int], kept: Mapping[str, str] = {}) -> Config:
    """A stack with the secrets that are ``kept``, and fresh ones for the others."""
    fresh = {name: secrets.token_hex(32 if name == "ray_token" else 20) for name in SECRETS}
    return Config(folder, chosen, fresh | {name: secret for name, secret in kept.items() if secret})


def make_folder(folder: Path) -> None:
    """The stack's folder and those in it, for their owner alone.

    Raises:
        StoreError: it cannot be made, or belongs to somebody else.
    """
    try:
        for each in (folder, folder / "logs", folder / "run"):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            each.chmod(0o700)
    except OSError as error:
        raise StoreError(
            f"the stack's folder {str(folder)!r} cannot be made ({error.strerror}): set SSL_BACKDOOR_HOME to another"
        ) from error


def write_private(path: Path, text: str) -> None:
    """Replace ``path`` in one step by a file of mode 0600."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
