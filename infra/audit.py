"""``make audit``: does a pinned dependency have a known vulnerability that a newer version mends?

Says in one line which of three things happened: nothing found (exit code 0), something found (1), or no answer (0): the
advisory service lies on the internet, and a CI that fails with its network is one that people learn to ignore. What is
to be accepted for a while stands in ``audit_accepted.toml`` with its reason and its last day.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssl_backdoor.errors import SpecError, UserError

_HERE = Path(__file__).parent
_PINS = _HERE / "constraints.txt"
_ACCEPTED = _HERE / "audit_accepted.toml"
_SOCKET_S = 5
_PROBE_S = 20.0
_WHOLE_S = 300.0


class _NoAnswerError(Exception):
    """The advisory service was not reached, or knows none of the packages, as a mirror does not."""


def main() -> int:
    """Ask of one package, then of all."""
    pins = [line for line in _PINS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    try:
        accepted = read_accepted(_ACCEPTED, datetime.datetime.now(datetime.UTC).date())
        with tempfile.TemporaryDirectory(prefix="ssl-backdoor-audit-") as folder:
            one = Path(folder) / "one.txt"
            one.write_text(f"{pins[0]}\n", encoding="utf-8")
            _ask(one, _PROBE_S)
            known = _ask(_PINS, _WHOLE_S)
    except _NoAnswerError as error:
        return _say(f"no answer from the advisory service ({error}); nothing is known of {len(pins)} pins", 0)
    except UserError as error:
        return _say(str(error), 2)
    if found := sorted(mendable(known, accepted)):
        return _say(f"found {len(found)}: {'; '.join(found)}: raise the pins, or accept them in {_ACCEPTED.name}", 1)
    return _say(f"nothing found in {len(known)} of {len(pins)} pins ({len(accepted)} accepted for now)", 0)


def read_accepted(file: Path, today: datetime.date) -> set[str]:
    """Advisories that are accepted today.

    Raises:
        SpecError: an entry without id, reason or last day.
    """
    accepted = set()
    for entry in tomllib.loads(file.read_text(encoding="utf-8")).get("accepted", []):
        until = entry.get("until")
        if not (entry.get("id") and entry.get("reason") and type(until) is datetime.date):
            raise SpecError(f"{file.name}: an entry needs id, reason and until = YYYY-MM-DD, found {entry}")
        if today <= until:
            accepted.add(str(entry["id"]))
    return accepted


def _ask(pins: Path, limit_s: float) -> list[Mapping[str, Any]]:
    """What pip-audit knows of the packages in ``pins``: those it could look up.

    Raises:
        _NoAnswerError: none, or the service was not reached.
        UserError: pip-audit is not installed, or failed by itself.
    """
    program = shutil.which("pip-audit", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    if program is None:
        raise UserError("the program pip-audit is not installed: make setup")
    command = [program, "--requirement", str(pins), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", str(_SOCKET_S)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise _NoAnswerError(f"none within {limit_s:.0f} s") from error
    try:
        listed: list[Mapping[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        if any(word in done.stderr for word in ("ConnectionError", "Timeout", "HTTPError", "ServiceError", "connect")):
            raise _NoAnswerError(last) from error
        raise UserError(f"pip-audit failed by itself: {last}") from error
    known = [each for each in listed if "skip_reason" not in each]
    if not known:
        raise _NoAnswerError("it knows none of the packages")
    return known


def mendable(known: list[Mapping[str, Any]], accepted: set[str]) -> Iterator[str]:
    """A line for each advisory that a newer version mends and that is not accepted, under this or another name."""
    for each in known:
        for advisory in each["vulns"]:
            names = {advisory["id"], *advisory.get("aliases", [])}
            if advisory["fix_versions"] and not names & accepted:
                mended = ", ".join(advisory["fix_versions"])
                yield f"{each['name']} {each['version']} has {advisory['id']}, mended in {mended}"


def _say(text: str, code: int) -> int:
    sys.stdout.write(f"audit: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
