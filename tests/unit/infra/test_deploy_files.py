"""The files for containers, clusters and CI: their rules, and that they say what `make up` does. Nothing is started."""

import json
import re
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest
import yaml
from kubernetes_validate import validate
from prefect.utilities.templating import apply_values

from infra import containers
from infra.stack import config as configuration
from infra.stack import object_store, ports, postgres, ray_head, web
from infra.stack.errors import ServiceError
from infra.stack.services import SERVICES
from ssl_backdoor.errors import UserError
from tests.support.waiting import wait_until

INFRA = Path(__file__).parents[3] / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
RUNNING = {name: each for name, each in COMPOSE["services"].items() if each["restart"] != "no"}
PEER = "ssl-backdoor/peer"
KUBERNETES = "1.34"


@pytest.fixture
def config(monkeypatch):
    for module in (object_store, ray_head, web):
        monkeypatch.setattr(module, "program", lambda name: name)
    secrets = {name: f"${name}" for name in configuration.SECRETS}
    return configuration.Config(Path("/lab/stack"), containers.PORTS, secrets, containers.HOSTS)


def words(name: str) -> list[str]:
    """What a service of compose.yaml runs, one word each."""
    return " ".join(COMPOSE["services"][name]["command"]).replace("\\\n", " ").split()


def environment(name: str) -> dict[str, str]:
    """Its variables, secrets as `$name`."""
    given = COMPOSE["services"][name]["environment"]
    return {key: re.sub(r"\$\{(\w+):\?[^}]*\}", lambda it: f"${it[1].lower()}", text) for key, text in given.items()}


def cluster() -> dict:
    return yaml.safe_load((INFRA / "kubernetes" / "ray-cluster.yaml").read_text())["spec"]


def ray_pods() -> list[dict]:
    """The templates of its head and its workers."""
    spec = cluster()
    return [spec["headGroupSpec"]["template"], *(one["template"] for one in spec["workerGroupSpecs"])]


def test_the_same_services_as_on_one_machine():
    assert set(RUNNING) == {each.name for each in SERVICES}
    assert set(COMPOSE["services"]) - set(RUNNING) == {"prepare", "deploy"}


def test_every_image_has_a_tag_and_every_server_a_check_and_a_limit():
    for each in COMPOSE["services"].values():
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", each["image"])
        assert each["mem_limit"]
        assert each["cap_drop"] == ["ALL"]
        assert each["security_opt"] == ["no-new-privileges:true"]
    for name, each in RUNNING.items():
        assert each["healthcheck"]["test"][0] == "CMD", name
        assert each["restart"] == "unless-stopped"
    for each in re.findall(r"^FROM (\S+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE):
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", each)


def test_ports_are_published_on_loopback_with_the_variables_of_make_up():
    published = {name: each["ports"] for name, each in COMPOSE["services"].items() if "ports" in each}
    assert published == {
        name: [f"127.0.0.1:${{{ports.variable(name)}:-{ports.DEFAULTS[name]}}}:{ports.DEFAULTS[name]}"]
        for name in ("s3", "prefect", "mlflow")
    }


def test_links_to_mlflow_lead_to_its_published_port():
    (published,) = COMPOSE["services"]["mlflow"]["ports"]
    assert f"{environment('worker')['SSL_BACKDOOR_MLFLOW_PAGE']}:5000" == f"http://{published}"


def test_volumes_and_networks_are_declared():
    for each in COMPOSE["services"].values():
        for volume in each.get("volumes", ()):
            assert volume.startswith("${SSL_BACKDOOR_DATA:-data}:") or volume.split(":")[0] in COMPOSE["volumes"]
        assert set(each["networks"]) <= set(COMPOSE["networks"])


def test_every_secret_must_be_given_and_none_is_written_down():
    text = (INFRA / "compose.yaml").read_text()
    wanted = {name.upper() for name in configuration.SECRETS}
    assert set(re.findall(r"\$\{(\w+):\?[^}]+\}", text)) == wanted
    for each in COMPOSE["services"].values():
        for name, value in each.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|_KEY", name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
    for file in [INFRA / "ci-example.yaml", INFRA / "Dockerfile", *(INFRA / "kubernetes").iterdir()]:
        assert not re.search(r"kind: Secret|[0-9a-f]{32}", file.read_text()), file


def test_servers_are_given_what_make_up_gives_them(config):
    quiet = dict(configuration.TELEMETRY_OFF)
    own = {"PREFECT_HOME", "PREFECT_SERVER_UI_API_URL", "PREFECT_SERVER_UI_STATIC_DIRECTORY", "SSL_BACKDOOR_HOME"}
    # Loopback there, a network here.
    own |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "PREFECT_WORKER_WEBSERVER_HOST", "SSL_BACKDOOR_MLFLOW_PAGE"}
    own |= {"MLFLOW_SERVER_ALLOWED_HOSTS", "PREFECT_PASSWORD"}
    for each in SERVICES:
        if each.name not in ("postgres", "s3"):
            expected = {name: text for name, text in {**quiet, **each.environment(config)}.items() if name not in own}
            assert {name: t for name, t in environment(each.name).items() if name not in own} == expected, each.name


def test_servers_run_with_the_flags_of_make_up(config):
    s3 = {
        flag for flag in object_store.SERVICE.command(config) if "localSocket" not in flag
    }  # a container has its /tmp
    s3.discard(f"-ip.bind={ports.LOOPBACK}")
    assert s3 | {"-ip.bind=0.0.0.0"} <= set(words("s3"))
    ray = [flag for flag in ray_head.SERVICE.command(config) if not re.match("--(node-ip|num-cpus|temp-dir)", flag)]
    assert words("ray") == ray
    worker = " ".join(web.WORKER.command(config))
    assert worker in " ".join(words("worker"))
    for each in (web.PREFECT, web.MLFLOW):
        flags = " ".join(each.command(config)).replace(ports.LOOPBACK, "0.0.0.0").replace("=", " ")
        flags = flags.replace(sys.executable, "python")
        assert " ".join(words(each.name)).replace("=", " ").startswith(flags)


def test_postgres_is_made_as_on_one_machine():
    given = COMPOSE["services"]["postgres"]["environment"]["POSTGRES_INITDB_ARGS"]
    assert given == "--auth=scram-sha-256 --encoding=UTF8 --locale=C --data-checksums"
    assert COMPOSE["services"]["prepare"]["command"][-2:] == ["postgres", "s3"]
    prepared = set(COMPOSE["services"]["prepare"]["environment"])
    assert {f"POSTGRES_{name.upper()}_PASSWORD" for name in postgres.DATABASES} <= prepared


def test_secrets_are_fresh_private_and_written_once(tmp_path):
    file = tmp_path / "compose.env"
    containers.write_secrets(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = dict(line.split("=") for line in file.read_text().splitlines())
    assert containers.settings(lines).secrets.keys() == set(configuration.SECRETS)
    with pytest.raises(UserError, match="is there"):
        containers.write_secrets(file)
    assert dict(line.split("=") for line in file.read_text().splitlines()) == lines


def test_an_older_file_of_secrets_is_completed(tmp_path):
    file = tmp_path / "compose.env"
    file.write_text("POSTGRES_PASSWORD=kept\nRAY_TOKEN=kept too")
    containers.write_secrets(file)
    lines = dict(line.split("=") for line in file.read_text().splitlines())
    assert (lines["POSTGRES_PASSWORD"], lines["RAY_TOKEN"]) == ("kept", "kept too")
    assert containers.settings(lines).secrets.keys() == set(configuration.SECRETS)


def test_a_wrong_call_is_one_sentence(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for arguments in ([], ["prepare", "redis"], ["finish"], ["beside-ray", "true"]):
        assert containers.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A `ray` whose `start` leaves a process named raylet that lives for a while, given in seconds."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    shutil.copy(shutil.which("sleep"), tmp_path / "raylet")

    def lives(seconds: float) -> None:
        ray = tmp_path / "ray"
        ray.write_text(f"#!/bin/sh\n{tmp_path / 'raylet'} {seconds} >/dev/null 2>&1 &\n")
        ray.chmod(0o700)
        monkeypatch.setattr(containers, "program", lambda name: str(tmp_path / name))
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")

    yield lives
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("command", "code"), [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill $$"], 143)]
)
def test_a_command_beside_ray_ends_the_node_and_keeps_its_exit_code(node, command, code):
    before = containers._raylets()
    node(60)
    assert containers.beside_ray(command) == code
    wait_until(lambda: containers._raylets() <= before, timeout_s=30, what="the end of the node")


def test_a_lost_node_ends_the_command(node):
    node(0.5)
    with pytest.raises(ServiceError, match="lost"):
        containers.beside_ray(["sleep", "60"])


def test_the_image_gets_no_secrets():
    rules = (INFRA / "Dockerfile.dockerignore").read_text().split()
    assert rules[rules.index("infra/*.env") :]
    assert rules.index("infra/*.env") > rules.index("!infra")
    assert containers.SECRETS_FILE.relative_to(INFRA.parent).match("infra/*.env")
    assert "infra/*.env" in (INFRA.parent / ".gitignore").read_text().split()


def test_the_ray_cluster_asks_for_its_token_and_its_image_is_ours():
    spec = cluster()
    assert f"ray=={spec['rayVersion']}" in (INFRA / "constraints.txt").read_text().split()
    for template in ray_pods():
        (container,) = template["spec"]["containers"]
        token = {one["name"]: one for one in container["env"]}
        assert token["RAY_AUTH_MODE"]["value"] == "token"
        assert token["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "ssl-backdoor-ray", "key": "auth_token"}
        assert container["image"] == COMPOSE["services"]["ray"]["image"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert PEER in template["metadata"]["labels"]


def test_kubernetes_knows_every_field_of_settings_and_of_rays_pods():
    for document in yaml.safe_load_all((INFRA / "kubernetes" / "settings.yaml").read_text()):
        validate(document, KUBERNETES, strict=True)
    for template in ray_pods():
        validate({"apiVersion": "v1", "kind": "Pod", **template}, KUBERNETES, strict=True)


def test_kubernetes_knows_every_field_of_a_job_as_prefect_renders_it():
    pool = json.loads((INFRA / "kubernetes" / "work-pool.json").read_text())
    defaults = {name: one.get("default") for name, one in pool["variables"]["properties"].items()}
    given = {name: value for name, value in defaults.items() if value is not None} | {"command": ["true"]}
    job = apply_values(pool["job_configuration"]["job_manifest"], given)
    pod = job["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)  # Prefect wants them there; Kubernetes drops them
    validate(job, KUBERNETES, strict=True)


def test_the_work_pool_asks_for_variables_that_exist():
    pool = json.loads((INFRA / "kubernetes" / "work-pool.json").read_text())
    asked = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(pool["job_configuration"])))
    assert asked == set(pool["variables"]["properties"])
    pod = pool["job_configuration"]["job_manifest"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-m", "infra.containers", "beside-ray"]
    assert {one["name"] for one in container["env"] if "valueFrom" in one} == {
        "RAY_AUTH_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    }
    assert PEER in pod["metadata"]["labels"]
    assert pool["variables"]["properties"]["image"]["default"] == COMPOSE["services"]["ray"]["image"]


def test_the_example_for_ci_pins_limits_and_hides():
    workflow = yaml.safe_load((INFRA / "ci-example.yaml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.0.0"))
            assert "${{" not in step.get("run", "")  # an expression in a script is text that others wrote
            for name, value in step.get("env", {}).items():
                assert not re.search("AUTH|_KEY", name) or value.startswith("${{ secrets.")
