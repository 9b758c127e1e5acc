"""The servers and the worker that speak HTTP: Prefect, MLflow, and Prefect's worker of the pool ``lab``."""

import hashlib
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from infra.stack import http, postgres
from infra.stack.config import (
    BUCKETS,
    ROOT,
    Config,
    client_environment,
    mlflow_login,
    prefect_login,
    s3_environment,
    write_private,
)
from infra.stack.errors import ServiceError
from infra.stack.ports import LOOPBACK
from infra.stack.service import Service, program, read_record, run_tool
from tasks.guard import own_addresses

POOL = "lab"
MLFLOW_APP = "ssl-backdoor"
"""The entry point of ``tasks.mlflow_server``."""
_POOL_LIMIT = 2
_WORKER = "stack"
_DEPLOYMENTS = "infra/prefect.yaml"
_CODE = ("flows", "ssl_backdoor", "tasks")
_DEPLOY_S = 180.0


def _prefect_environment(config: Config) -> Mapping[str, str]:
    return {
        "PREFECT_HOME": str(config.folder / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.uri(config, "prefect", "asyncpg"),
        "PREFECT_SERVER_UI_API_URL": f"{config.url('prefect')}/api",  # else the page asks port 4200
        "PREFECT_SERVER_API_AUTH_STRING": prefect_login(config),
    }


def _prefect_command(config: Config) -> list[str]:
    return [sys.executable, "-m", "tasks.prefect_server", "--host", LOOPBACK, "--port", str(config.ports["prefect"])]


def _prefect_healthy(config: Config) -> bool:
    return all(http.ask_prefect(config, page)[0] == 200 for page in ("health", "admin/version"))


def _make_pool(config: Config) -> None:
    status, text = http.ask_prefect(config, f"work_pools/{POOL}", timeout_s=15.0)
    if status == 404:
        body = {"name": POOL, "type": "process", "concurrency_limit": _POOL_LIMIT}
        status, text = http.ask_prefect(config, "work_pools/", body, timeout_s=15.0)
    if status not in (200, 201):
        raise ServiceError(f"Prefect refuses the work pool {POOL} (HTTP {status}): {text[:300]}")


def _mlflow_environment(config: Config) -> Mapping[str, str]:
    return {
        "MLFLOW_BACKEND_STORE_URI": postgres.uri(config, "mlflow", "psycopg2"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_S3_ENDPOINT_URL": config.url("s3"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(sorted(own_addresses(config.ports["mlflow"]))),
        **mlflow_login(config),
        **s3_environment(config, "mlflow"),
    }


def _mlflow_command(config: Config) -> list[str]:
    command = [program("mlflow"), "server", "--app-name", MLFLOW_APP, "--workers", "1"]
    command += ["--host", LOOPBACK, "--port", str(config.ports["mlflow"])]
    return [*command, "--serve-artifacts", "--artifacts-destination", f"s3://{BUCKETS[1]}/"]


def _worker_environment(config: Config) -> Mapping[str, str]:
    return {**client_environment(config), "PREFECT_WORKER_QUERY_SECONDS": "2"}


def _worker_healthy(config: Config) -> bool:
    """Its pool has heard of it since it started; what an earlier one left there does not count."""
    record = read_record(config, _WORKER_SERVICE)
    answer = http.ask_prefect(config, f"work_pools/{POOL}/workers/filter", {"limit": 200})[1]
    known = http.parse_json(answer)
    if record is None or not isinstance(known, list):
        return False
    started = datetime.fromtimestamp(float(record["started_unix_s"]), UTC)
    return any(
        worker.get("name") == _WORKER
        and worker.get("status") == "ONLINE"
        and datetime.fromisoformat(worker["last_heartbeat_time"]) >= started
        for worker in known
    )


def deploy(config: Config) -> str | None:
    """Register the flows of ``infra/prefect.yaml``, where that file is there, unless Prefect has them as they are now.

    Returns:
        What went wrong; None where nothing did.
    """
    if not (ROOT / _DEPLOYMENTS).is_file():
        return None
    record, code_digest = config.folder / "deployed.json", _digest_code()
    if record.exists() and http.parse_json(record.read_text()) == [code_digest, *_known_deployments(config)]:
        return _end_departed(config)  # registering them again takes seven CPU seconds
    command = [program("prefect"), "--no-prompt", "deploy", "--all", "--prefect-file", _DEPLOYMENTS]
    code, text = run_tool(command, config, client_environment(config), _DEPLOY_S)
    if code != 0:
        return f"deploying {_DEPLOYMENTS} failed with exit code {code}:\n{text.strip()[-1500:]}"
    if (problem := _close_forms(config)) is None and config.folder.is_dir():  # a container has none
        write_private(record, json.dumps([code_digest, *_known_deployments(config)]) + "\n")
    return problem or _end_departed(config)


def _digest_code() -> str:
    """Of all that says what the deployments are, and what their forms ask for."""
    files = [ROOT / _DEPLOYMENTS, *(file for folder in _CODE for file in sorted((ROOT / folder).rglob("*.py")))]
    digests = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return hashlib.sha256(f"{version('prefect')} {digests}".encode()).hexdigest()


def _known_deployments(config: Config) -> list[str]:
    """Ids of the pool's deployments."""
    asked = {"work_pools": {"name": {"any_": [POOL]}}}
    status, text = http.ask_prefect(config, "deployments/filter", asked, timeout_s=15.0)
    return sorted(each["id"] for each in http.parse_json(text)) if status == 200 else []


def _close_forms(config: Config) -> str | None:
    """Have Prefect's server refuse a parameter that a flow does not take: its own schemas let any name through."""
    asked = {"work_pools": {"name": {"any_": [POOL]}}}
    status, text = http.ask_prefect(config, "deployments/filter", asked, timeout_s=15.0)
    for each in http.parse_json(text) if status == 200 else ():
        schema = {**each["parameter_openapi_schema"], "additionalProperties": False}
        body = {"parameter_openapi_schema": schema}
        status, text = http.ask_prefect(config, f"deployments/{each['id']}", body, 15.0, "PATCH")
        if status != 204:
            break
    return None if status in (200, 204) else f"unknown parameters may be let through (HTTP {status}): {text[:300]}"


def _end_departed(config: Config) -> str | None:
    """Runs whose process was killed end on Prefect's page; those that an earlier worker had not begun are planned."""
    record = read_record(config, _WORKER_SERVICE)
    began_s = str(record["started_unix_s"]) if record else "0"
    command = [sys.executable, "-m", "tasks.orphans", POOL, began_s]
    code, text = run_tool(command, config, client_environment(config), _DEPLOY_S)
    return None if code == 0 else f"runs without a process may show as running (exit code {code}):\n{text[-1500:]}"


_WORKER_SERVICE = "worker"

PREFECT = Service(
    name="prefect",
    ports=("prefect",),
    needs=("postgres",),
    url=lambda config: config.url("prefect"),
    command=_prefect_command,
    environment=_prefect_environment,
    healthy=_prefect_healthy,
    prepare=lambda config: (config.folder / "prefect").mkdir(mode=0o700, exist_ok=True),
    finish=_make_pool,
)

MLFLOW = Service(
    name="mlflow",
    ports=("mlflow",),
    needs=("postgres", "s3"),
    url=lambda config: config.url("mlflow"),
    command=_mlflow_command,
    environment=_mlflow_environment,
    healthy=lambda config: http.request(f"{config.url('mlflow')}/health")[0] == 200,
)

WORKER = Service(
    name=_WORKER_SERVICE,
    ports=(),
    needs=("prefect",),
    url=lambda config: f"pool {POOL}",
    command=lambda config: [
        *(program("prefect"), "worker", "start", "--pool", POOL, "--type", "process", "--name", _WORKER)
    ],
    environment=_worker_environment,
    healthy=_worker_healthy,
    prepare=lambda config: (config.home / "prefect").mkdir(parents=True, exist_ok=True),
    cwd=lambda config: ROOT,
    grace_s=20.0,
)
