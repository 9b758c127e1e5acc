"""The three outcomes of `make audit`, told by a pip-audit that says what the test wants; no network."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.audit import mendable, read_accepted
from ssl_backdoor.errors import SpecError

ROOT = Path(__file__).parents[3]
TODAY = datetime.date(2027, 1, 31)


def entry(*vulnerabilities: dict) -> dict:
    return {"name": "jinja2", "version": "3.1.2", "vulns": list(vulnerabilities)}


def advisory(*fixes: str) -> dict:
    return {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": list(fixes), "description": "bad"}


def audited(folder: Path, *, listed: list[dict] | None = None, stderr: str = "", code: int = 0) -> tuple[int, str]:
    """Exit code and the one line of `make audit` with a pip-audit that ends so."""
    program = folder / "pip-audit"
    stdout = "" if listed is None else json.dumps({"dependencies": listed, "fixes": []})
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"sys.stdout.write({stdout!r})\nsys.stderr.write({stderr!r})\nsys.exit({code})\n"
    )
    program.chmod(0o700)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "infra.audit"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return done.returncode, line


@pytest.mark.parametrize(
    ("ended", "code", "words"),
    [
        ({"listed": [entry()]}, 0, "audit: nothing found in 1 of"),
        ({"listed": [entry(advisory())], "code": 1}, 0, "audit: nothing found"),
        ({"listed": [entry(advisory("3.1.6"))], "code": 1}, 1, "jinja2 3.1.2 has PYSEC-1, mended in 3.1.6"),
        ({"stderr": "requests.exceptions.ConnectionError: no route\n", "code": 1}, 0, "audit: no answer"),
        ({"listed": [{"name": "jinja2", "skip_reason": "not found"}]}, 0, "audit: no answer"),
        ({"stderr": "usage: pip-audit\nunrecognized arguments\n", "code": 2}, 2, "failed by itself: unrecognized"),
    ],
    ids=["clean", "without a fix", "with a fix", "no network", "a mirror", "a broken program"],
)
def test_one_line_tells_which_of_three_things_happened(tmp_path, ended, code, words):
    found, line = audited(tmp_path, **ended)
    assert (found, words in line) == (code, True), line


def accepted(folder: Path, text: str) -> set[str]:
    (folder / "accepted.toml").write_text(text)
    return read_accepted(folder / "accepted.toml", TODAY)


def test_an_advisory_is_accepted_until_its_last_day(tmp_path):
    text = '[[accepted]]\nid = "PYSEC-{0}"\nreason = "not called"\nuntil = 2027-01-{0}\n'
    assert accepted(tmp_path, text.format(30) + text.format(31)) == {"PYSEC-31"}


def test_an_accepted_advisory_passes_under_any_of_its_names():
    known = [entry(advisory("3.1.6"))]
    assert len(list(mendable(known, {"PYSEC-2"}))) == 1
    assert list(mendable(known, {"CVE-1"})) == []


@pytest.mark.parametrize("missing", ["id", "reason", "until"])
def test_an_acceptance_needs_its_reason_and_last_day(tmp_path, missing):
    lines = {"id": '"PYSEC-1"', "reason": '"not called"', "until": "2027-01-31"}
    text = "[[accepted]]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items() if name != missing)
    with pytest.raises(SpecError, match="needs id, reason and until"):
        accepted(tmp_path, text)
