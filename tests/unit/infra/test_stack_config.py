"""The stack's ports, its configuration file, and where its secrets may be seen. Nothing is started."""

import json
import socket
import stat
from pathlib import Path

import pytest

from infra.stack import config as configuration
from infra.stack import control, object_store, ports, postgres, ray_head, service, web
from infra.stack.services import SERVICES
from ssl_backdoor.errors import SpecError, StoreError, UserError
from tasks.ray_settings import RAYS


@pytest.fixture
def config(tmp_path: Path) -> configuration.Config:
    folder = tmp_path / "home" / "stack"
    configuration.make_folder(folder)
    return configuration.new(folder, ports.choose({}, {}))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_default_ports_are_all_different_and_variables_change_them():
    assert ports.choose({}, {}) == dict(ports.DEFAULTS)
    assert ports.choose({"SSL_BACKDOOR_PORT_S3_MASTER": "1234"}, {})["s3_master"] == 1234


def test_remembered_ports_stay_unless_a_variable_says_otherwise():
    remembered = dict(ports.DEFAULTS) | {"prefect": 4300, "mlflow": 5300}
    chosen = ports.choose({"SSL_BACKDOOR_PORTS": "free", "SSL_BACKDOOR_PORT_MLFLOW": "5301"}, remembered)
    assert chosen == remembered | {"mlflow": 5301}


def test_free_ports_are_free_and_different():
    chosen = ports.choose({"SSL_BACKDOOR_PORTS": "free", "SSL_BACKDOOR_PORT_S3": "20001"}, {})
    assert len(set(chosen.values())) == len(ports.DEFAULTS)
    assert chosen["s3"] == 20001


@pytest.mark.parametrize("text", ["", "abc", "80", "70000", "-1", "٤٢٠٠"])
def test_port_that_is_none_is_refused_with_the_variables_name(text):
    environ = {"SSL_BACKDOOR_PORT_RAY": text}
    if not text:
        assert ports.choose(environ, {})["ray"] == ports.DEFAULTS["ray"]
        return
    with pytest.raises(SpecError, match="SSL_BACKDOOR_PORT_RAY"):
        ports.choose(environ, {})


def test_two_listeners_never_share_a_port():
    with pytest.raises(SpecError, match="5000 is given to prefect and to mlflow"):
        ports.choose({"SSL_BACKDOOR_PORT_PREFECT": "5000"}, {})


def test_ports_takes_no_other_word():
    with pytest.raises(SpecError, match="free"):
        ports.choose({"SSL_BACKDOOR_PORTS": "any"}, {})


def test_a_port_that_somebody_listens_on_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
        assert ports.answers(port)
    assert ports.is_free(port)


def test_configuration_is_private_and_comes_back_as_it_was(config):
    configuration.save(config)
    path = config.folder / "config.json"
    assert mode(path) == 0o600
    assert mode(config.folder) == 0o700
    assert configuration.load(config.folder) == config
    assert [entry.name for entry in config.folder.iterdir() if entry.name.startswith(".")] == []


def test_secrets_are_fresh_different_and_long_enough(config):
    again = configuration.new(config.folder, config.ports)
    values = [*config.secrets.values(), *again.secrets.values()]
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 40
    assert len(config.secrets["ray_token"]) == 64


def test_the_client_environment_names_every_service_and_the_writer_only(config):
    configuration.save(config)
    environment = json.loads((config.folder / "config.json").read_text())["environment"]
    assert environment == configuration.client_environment(config)
    assert environment["SSL_BACKDOOR_HOME"] == str(config.home)
    assert environment["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    shown = {name for name, secret in config.secrets.items() if secret in environment.values()}
    assert shown == {"ray_token", "s3_writer_access_key", "s3_writer_secret_key", "mlflow_password"}
    assert environment["PREFECT_API_AUTH_STRING"] == f"lab:{config.secrets['prefect_password']}"
    assert not {name for name in environment if name.startswith("SSL_BACKDOOR_STACK")}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ports": {}, "secrets": {}}', '{"ports": {"s3": "x"}}'])
def test_a_broken_configuration_is_named_and_kept(config, text):
    (config.folder / "config.json").write_text(text)
    with pytest.raises(StoreError, match=r"config\.json"):
        configuration.load(config.folder)
    assert (config.folder / "config.json").read_text() == text


def test_no_secret_in_any_command_line(config, monkeypatch):
    monkeypatch.setattr(postgres, "binary", lambda name: name)
    monkeypatch.setattr(object_store, "program", lambda name: name)
    monkeypatch.setattr(ray_head, "program", lambda name: name)
    monkeypatch.setattr(web, "program", lambda name: name)
    for each in SERVICES:
        line = " ".join(each.command(config))
        assert [name for name, secret in config.secrets.items() if secret in line] == []


def test_each_server_is_given_only_the_secrets_it_needs(config):
    given = {
        each.name: {name for name, secret in config.secrets.items() if secret in str(dict(each.environment(config)))}
        for each in SERVICES
    }
    writer = {"s3_writer_access_key", "s3_writer_secret_key"}
    assert given == {
        "postgres": set(),
        "s3": set(),
        "ray": {"ray_token", *writer},
        "prefect": {"postgres_prefect_password", "prefect_password"},
        "mlflow": {"postgres_mlflow_password", "s3_mlflow_access_key", "s3_mlflow_secret_key", "mlflow_password"},
        "worker": {"ray_token", *writer, "prefect_password", "mlflow_password"},
    }


def older(config: configuration.Config) -> dict[str, str]:
    """Makes ``config.json`` what it was before Prefect and MLflow asked for passwords; the secrets it keeps."""
    configuration.save(config)
    file = config.folder / "config.json"
    kept = json.loads(file.read_text())
    for name in ("prefect_password", "mlflow_password", "s3_signing_key"):
        del kept["secrets"][name]
    file.write_text(json.dumps(kept))
    return dict(kept["secrets"])


def test_a_home_of_an_older_version_is_given_the_passwords_it_lacks_and_keeps_its_own(config):
    kept = older(config)
    new = control._load_or_create_config(config.folder)
    assert kept.items() < new.secrets.items()
    assert all(len(secret) >= 40 for secret in new.secrets.values())
    assert configuration.load(config.folder) == new
    assert control._load_or_create_config(config.folder) == new


def test_services_of_an_older_version_are_stopped_before_they_are_given_passwords(config, monkeypatch):
    kept = older(config)
    monkeypatch.setattr(control.service, "running", lambda *_: True)
    with pytest.raises(UserError, match=r"`make down` first, then `make up`"):
        control._load_or_create_config(config.folder)
    assert json.loads((config.folder / "config.json").read_text())["secrets"] == kept
    assert configuration.load(config.folder) is not None


def test_a_home_without_a_password_of_a_database_is_no_older_one(config):
    configuration.save(config)
    file = config.folder / "config.json"
    kept = json.loads(file.read_text())
    del kept["secrets"]["postgres_password"]
    file.write_text(json.dumps(kept))
    with pytest.raises(StoreError, match="restore it"):
        configuration.load(config.folder)


def test_services_stand_in_dependency_order_and_own_every_port():
    seen: set[str] = set()
    for each in SERVICES:
        assert set(each.needs) <= seen
        seen.add(each.name)
    assert sorted(name for each in SERVICES for name in each.ports) == sorted(ports.DEFAULTS)


def test_a_shells_settings_do_not_reach_a_server(config, monkeypatch):
    for name in ("PREFECT_API_URL", "AWS_PROFILE", "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PGHOST", "WEED_X"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.setenv("SSL_BACKDOOR_LOG", "json")
    environment = service.environment_for(config, "prefect", {"OWN": "1"})
    assert "elsewhere" not in environment.values()
    assert environment["OWN"] == "1"
    assert environment["SSL_BACKDOOR_LOG"] == "json"
    assert set(environment["NO_PROXY"].split(",")) == {"intranet", "127.0.0.1", "localhost", "::1"}
    assert environment["SSL_BACKDOOR_STACK"] == f"prefect:{config.folder}"


def test_secrets_are_taken_out_of_what_is_shown(config):
    secret = config.secrets["postgres_mlflow_password"]
    config.log("mlflow").write_text(f"one\n\npassword {secret}\n")
    assert service.last_lines(config, "mlflow") == "    one\n    password ***"
    assert service.last_lines(config, "mlflow", since_bytes=5) == "    password ***"
    assert service.last_lines(config, "prefect") == "    (it is empty)"
    assert secret not in repr(config)


def test_ray_gets_a_short_folder(config):
    sockets = (
        ray_head.temp_folder(config) / RAYS / "session_2026-01-01_00-00-00_000000_1000000" / "sockets" / "plasma_store"
    )
    assert len(str(sockets).removeprefix(str(ray_head.temp_folder(config).parent))) < 100


def test_the_folder_is_under_the_home(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert configuration.folder_of({}) == tmp_path.resolve() / ".lab" / "stack"
    assert configuration.folder_of({"SSL_BACKDOOR_HOME": "other"}) == tmp_path.resolve() / "other" / "stack"


def test_flows_are_deployed_again_only_where_something_changed(config, monkeypatch):
    known, commands = ["a", "b"], []

    def ask(_, page, body=None, *__, **___):
        assert page == "deployments/filter" or page.startswith("deployments/")
        return (204, "") if page != "deployments/filter" else (200, json.dumps(answers()))

    def answers():
        return [{"id": name, "parameter_openapi_schema": {}} for name in known]

    def deployed() -> int:
        commands.clear()
        assert web.deploy(config) is None
        return sum("deploy" in command for command in commands)

    monkeypatch.setattr(web.http, "ask_prefect", ask)
    monkeypatch.setattr(web, "run_tool", lambda command, *_: commands.append(command) or (0, ""))
    assert [deployed(), deployed()] == [1, 0]
    known[:] = ["c"]  # another database
    assert [deployed(), deployed()] == [1, 0]
    monkeypatch.setattr(web, "version", lambda _: "another")
    assert [deployed(), deployed()] == [1, 0]
    monkeypatch.setattr(web, "_CODE", ("flows",))  # other files
    assert [deployed(), deployed()] == [1, 0]
    (config.folder / "deployed.json").write_text("[")
    assert [deployed(), deployed()] == [1, 0]
