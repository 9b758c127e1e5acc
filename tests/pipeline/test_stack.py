"""The whole service stack, really started on free ports, on loopback only; how it ends and comes back."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from infra.stack import config as configuration
from infra.stack import http, object_store, ports, postgres, service, web
from tests.support import ROOT
from tests.support.command_server import TINY_SETTINGS
from tests.support.deployment_runs import drop_database, kill
from tests.support.listening_sockets import listening, outside_loopback
from tests.support.service_stack import NAMES, Stack, running_stack

pytestmark = [pytest.mark.services, pytest.mark.slow]
MAX_IDLE_MIB = 4096
SHORT = {"settings": TINY_SETTINGS, "methods": "byol", "until": "poison"}
LOG_RUN = """
import mlflow, sys
client = mlflow.MlflowClient()
experiment = client.create_experiment("stack")
run = client.create_run(experiment).info.run_id
client.log_metric(run, "accuracy", 0.5)
client.log_text(run, "kept", "note.txt")
client.set_terminated(run)
print(run)
"""
READ_RUN = """
import mlflow, sys
client = mlflow.MlflowClient()
print(client.get_run(sys.argv[1]).data.metrics["accuracy"], mlflow.artifacts.load_text(f"runs:/{sys.argv[1]}/note.txt"))
"""
RAY_TASK = """
import os, ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
print(ray.get(ray.remote(lambda: "from a worker").remote()))
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def run_id(stack: Stack) -> str:
    """A run in MLflow with a metric and a text."""
    done = stack.client(LOG_RUN)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def leaders(stack: Stack) -> dict[str, int]:
    found = {name: service.running(stack.config, name) for name in NAMES}
    return {name: process.pid for name, process in found.items() if process is not None}


def test_a_second_up_changes_nothing(stack):
    before, kept = leaders(stack), (stack.folder / "config.json").read_bytes()
    deployed = (stack.folder / "deployed.json").stat().st_mtime_ns
    code, out, err = stack("up")
    assert code == 0, err
    assert out.count("runs already") == len(NAMES)
    assert leaders(stack) == before
    assert len(before) == len(NAMES)
    assert (stack.folder / "config.json").read_bytes() == kept
    assert (stack.folder / "deployed.json").stat().st_mtime_ns == deployed


def test_status_says_all_run_within_the_memory_budget(stack):
    code, out, err = stack("status")
    assert code == 0, out + err
    rows = [line.split() for line in out.splitlines()[1:-1]]
    assert [row[:2] for row in rows] == [[name, "running"] for name in NAMES]
    assert 500 < int(out.split()[-1]) <= MAX_IDLE_MIB


def test_every_listening_socket_is_on_loopback(stack):
    pids = [each.process.pid for each in stack.members()]
    assert outside_loopback(pids) == set()
    assert set(stack.config.ports.values()) <= {port for _, port in listening(pids)}


def test_no_secret_in_command_lines_logs_or_files_but_three(stack, run_id):
    secrets = {name: value.encode() for name, value in stack.config.secrets.items()}
    for each in stack.members():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{each.process.pid}/cmdline").read_bytes()
            assert [name for name, secret in secrets.items() if secret in line] == []
    holders = set()
    for path in (path for path in stack.home.rglob("*") if path.is_file()):
        with contextlib.suppress(FileNotFoundError):
            if any(secret in path.read_bytes() for secret in secrets.values()):
                holders.add(path.name)
                assert path.stat().st_mode & 0o777 == 0o600
    assert holders == {"config.json", "s3.json", "security.toml"}


def denied(call, **arguments) -> bool:
    try:
        call(**arguments)
    except ClientError as error:
        return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] == 403)
    return False


def test_each_identity_reaches_its_bucket_and_no_other(stack):
    clients = {name: object_store.client(stack.config, name) for name in configuration.IDENTITIES}
    for name, own, writes in (
        ("writer", "artifacts", True),
        ("reader", "artifacts", False),
        ("mlflow", "mlflow", True),
    ):
        client, other = clients[name], "mlflow" if own == "artifacts" else "artifacts"
        clients["admin"].put_object(Bucket=own, Key="rights", Body=b"x")
        assert not denied(client.get_object, Bucket=own, Key="rights")
        assert not denied(client.list_objects_v2, Bucket=own)
        assert denied(client.put_object, Bucket=own, Key="rights", Body=b"y") is not writes
        assert denied(client.delete_object, Bucket=own, Key="rights") is not writes
        assert denied(client.list_objects_v2, Bucket=other)
        assert denied(client.get_object, Bucket=other, Key="rights")
        assert denied(client.put_object, Bucket=other, Key="rights", Body=b"y")
        assert denied(client.delete_object, Bucket=other, Key="rights")
        assert denied(client.create_bucket, Bucket=f"of-{name}")
        assert denied(client.delete_bucket, Bucket=own)
        assert denied(client.delete_bucket, Bucket=other)


def test_without_a_name_nothing_is_read_or_written(stack):
    s3 = stack.config.url("s3")
    object_store.client(stack.config, "admin").put_object(Bucket="artifacts", Key="rights", Body=b"x")
    places = ("", "artifacts", "artifacts/?list-type=2", "artifacts/rights", "mlflow", "mlflow/rights")
    assert {place: http.request(f"{s3}/{place}")[0] for place in places} == dict.fromkeys(places, 403)
    assert http.request(f"{s3}/artifacts/rights", {}, method="PUT")[0] == 403
    assert http.request(f"{s3}/artifacts/rights", method="DELETE")[0] == 403


@pytest.mark.parametrize("part", ["s3", "s3_master", "s3_volume", "s3_filer", "s3_admin"])
def test_parts_of_seaweedfs_answer_nobody_without_their_certificate(stack, part):
    def answer(*certificate: Path) -> bytes:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if certificate:
            context.load_cert_chain(*certificate)
        address = (ports.LOOPBACK, stack.config.ports[f"{part}_grpc"])
        with socket.create_connection(address, timeout=5) as plain, context.wrap_socket(plain) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            return connection.recv(100)

    with pytest.raises(ssl.SSLError, match="certificate required"):
        answer()
    assert answer(stack.folder / "seaweed.pem", stack.folder / "seaweed.key")
    assert (stack.folder / "seaweed.key").stat().st_mode & 0o777 == 0o600


def test_the_projects_own_store_works_there(stack):
    script = (
        "import os; from ssl_backdoor.store import open_store; open_store(os.environ['SSL_BACKDOOR_STORE']).check()"
    )
    done = stack.client(script)
    assert done.returncode == 0, done.stderr


def test_mlflow_keeps_runs_in_postgresql_and_artifacts_in_its_bucket(stack, run_id):
    config = stack.config
    password = config.secrets["postgres_mlflow_password"]
    connection = postgres.connect(config, "mlflow", password, "mlflow")
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT value FROM metrics WHERE run_uuid = %s", (run_id,))
        assert cursor.fetchall() == [(0.5,)]
        cursor.execute("SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == (False,)
    listed = object_store.client(config, "mlflow").list_objects_v2(Bucket="mlflow")
    assert next(entry["Key"] for entry in listed["Contents"] if run_id in entry["Key"]).endswith("note.txt")
    for user, secret, database in (("mlflow", password, "prefect"), ("mlflow", "wrong", "mlflow")):
        with pytest.raises(postgres.psycopg2.OperationalError):
            postgres.connect(config, user, secret, database)


def test_prefect_knows_the_pool_its_worker_and_the_deployments(stack):
    pool = stack.api(f"work_pools/{web.POOL}")
    assert (pool["type"], pool["concurrency_limit"], pool["status"]) == ("process", 2, "READY")
    assert "job_configuration" in pool["base_job_template"]
    known = stack.api("deployments/filter", {})
    assert bool(known) == (ROOT / "infra" / "prefect.yaml").is_file()


def test_a_ray_task_runs_with_the_token_and_nothing_without(stack):
    done = stack.client(RAY_TASK)
    assert done.returncode == 0, done.stderr
    assert "from a worker" in done.stdout
    wrong = stack.client(RAY_TASK, RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode != 0
    assert "from a worker" not in wrong.stdout
    assert "InvalidAuthToken" in wrong.stderr
    probe = [sys.executable, "-m", "infra.stack.ray_head", stack.config.address("ray")]
    no_token = {**stack.environment, "RAY_AUTH_MODE": "disabled"}  # what a client may try
    assert subprocess.run(probe, cwd=ROOT, env=no_token, capture_output=True, timeout=240).returncode != 0


def test_another_stack_names_the_port_it_cannot_have(stack, tmp_path):
    taken = stack.config.ports["mlflow"]
    second = Stack(tmp_path / "second", SSL_BACKDOOR_PORT_MLFLOW=str(taken))
    code, _, err = second("up")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert all(word in err for word in (str(taken), "mlflow", "SSL_BACKDOOR_PORT_MLFLOW"))
    assert second.members() == []
    (port,) = ports.free(1)
    second.environment["SSL_BACKDOOR_PORT_MLFLOW"] = str(port)
    configuration.save(second.config)
    assert stack("status")[0] == 0


def test_a_server_that_cannot_start_is_named_and_takes_the_others_with_it(tmp_path):
    broken = Stack(tmp_path / "broken")
    (broken.folder / "postgres").mkdir(parents=True)  # no data folder of PostgreSQL, and not to be overwritten
    code, _, err = broken("up")
    assert code == 1
    assert err.startswith("stack: postgres ended with code 2")
    assert "postgres.log" in err
    assert "Traceback" not in err
    assert broken.members() == []
    assert list((broken.folder / "run").iterdir()) == []
    assert broken("down")[0] == 0


def test_ctrl_c_stops_what_was_started(tmp_path):
    stack = Stack(tmp_path / "interrupted")
    with stack.begin("up") as running:
        assert "ready" in running.stdout.readline()
        assert stack.members() != []
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=400)
    assert running.returncode == 130, err
    assert err == "stack: interrupted.\n"
    assert stack.members() == []
    assert stack("down")[0] == 0


@pytest.mark.parametrize("name", ["postgres", "s3", "ray"])
def test_up_brings_a_killed_server_back_with_its_data(stack, run_id, name):
    object_store.client(stack.config, "writer").put_object(Bucket="artifacts", Key="kept", Body=b"kept")
    before = leaders(stack)
    os.kill(before[name], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while name in leaders(stack):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code, out, _ = stack("status")
    assert code == 1
    assert re.search(rf"^{name} +stopped", out, re.MULTILINE)
    code, out, err = stack("up")
    assert code == 0, out + err
    after = leaders(stack)
    assert after.pop(name) != before.pop(name)
    assert after == before
    assert (
        object_store.client(stack.config, "writer").get_object(Bucket="artifacts", Key="kept")["Body"].read() == b"kept"
    )
    read = stack.client(READ_RUN, run_id)
    assert read.stdout.split() == ["0.5", "kept"], read.stderr


@pytest.fixture(scope="module")
def flow_run(stack: Stack) -> dict:
    """A short run of a deployment, over."""
    done = stack.deploy("experiment/demo", "--watch", **SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    return stack.flow_run(done)


@pytest.fixture(scope="module")
def went_down(stack: Stack, run_id: str, flow_run: dict) -> tuple[int, str, str]:
    """What `down` answered, once there was something to keep."""
    assert len(stack.members()) > len(NAMES)
    return stack("down")


def test_down_leaves_no_process_and_no_port_and_keeps_the_data(stack, went_down):
    code, _, err = went_down
    assert code == 0, err
    assert stack.members() == []
    assert [port for port in stack.config.ports.values() if ports.answers(port)] == []
    assert (stack.folder / "postgres" / "PG_VERSION").is_file()
    assert list((stack.folder / "run").iterdir()) == []
    assert stack("down")[:2] == (0, f"down; data are kept in {stack.folder}\n")
    assert stack("status")[0] == 1
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((ports.LOOPBACK, stack.config.ports["s3"]), timeout=5).close()


def computed_nothing(stack: Stack) -> bool:
    """The same run again comes through, every stage reused."""
    (run,) = stack.ended(stack.queue("experiment/demo", SHORT), timeout_s=300)
    assert run["state"]["type"] == "COMPLETED", run["state"]["message"]
    stages = stack.api("task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return {one["state"]["name"] for one in stages} == {"Reused"}


@pytest.fixture
def other_ports() -> dict[str, str]:
    numbers = ports.free(len(ports.DEFAULTS))
    return {ports.variable(name): str(number) for name, number in zip(ports.DEFAULTS, numbers, strict=True)}


def test_a_stack_copied_while_down_comes_up_in_another_home_and_may_lose_prefects_database(
    stack, run_id, flow_run, went_down, tmp_path, other_ports
):
    assert went_down[0] == 0
    archive, home = tmp_path / "backup.tar", tmp_path / "restored"
    packing = "umask 077 && tar -C {0} --exclude stack/run --exclude stack/logs -cf {1} stack"
    subprocess.run(["sh", "-c", packing.format(stack.home, archive)], check=True)
    assert archive.stat().st_mode & 0o777 == 0o600  # the secrets are in it
    home.mkdir()
    subprocess.run(["tar", "-C", home, "-xpf", archive], check=True)

    restored = Stack(home, **other_ports)
    try:
        code, out, err = restored("up")
        assert code == 0, out + err
        past = restored.api(f"flow_runs/{flow_run['id']}")
        assert (past["state"]["type"], past["state"]["message"]) == ("COMPLETED", "done up to poison")
        read = restored.client(READ_RUN, run_id)
        assert read.stdout.split() == ["0.5", "kept"], read.stderr
        assert computed_nothing(restored)

        for name in ("worker", "prefect"):
            kill(restored, name)
        drop_database(restored, "prefect")
        assert restored("up")[0] == 0
        assert restored.api("flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}) == []
        assert computed_nothing(restored)
    finally:
        restored("down")
