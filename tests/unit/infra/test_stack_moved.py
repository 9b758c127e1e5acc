"""A stack's folder that was copied into another home."""

import json
import shutil

from infra.stack import config as configuration
from infra.stack import control, ports


def test_a_restored_stack_keeps_ports_and_secrets_and_points_shells_at_its_new_home(tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_BACKDOOR_PORTS", raising=False)
    old, new = tmp_path / "old" / "stack", tmp_path / "new" / "stack"
    configuration.make_folder(old)
    before = control._load_or_create_config(old)
    shutil.copytree(old, new)
    after = control._load_or_create_config(new)
    assert (after.ports, after.secrets) == (before.ports, before.secrets)
    assert after.ports == ports.DEFAULTS
    environment = json.loads((new / "config.json").read_text())["environment"]
    assert environment == configuration.client_environment(after)
    assert environment["SSL_BACKDOOR_HOME"] == str(tmp_path / "new")
    assert "old" not in (new / "config.json").read_text()
    assert (new / "config.json").stat().st_mode & 0o777 == 0o600
