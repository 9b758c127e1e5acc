"""Hostile inputs end in a result or a sentence, within 2 s and 300 MB, and a decode can be interrupted."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hostile_inputs import CASES, saved
from picture_files import write_folder
from PIL import Image

TABLE = Path(__file__).with_name("hostile_inputs.py")
MOST_S, MOST_MB = 8.0, 300.0  # of processor time: 2 s on a machine of ours, and room for slower ones
HANG_S = 30.0
NUM_IMAGES = 60
INGEST = """
import signal, sys
from pathlib import Path
from ssl_backdoor.data import ingest
from ssl_backdoor.data.images import inspect
from ssl_backdoor.specs import DatasetSpec

def checked(*arguments):
    print("decoding", flush=True)
    return inspect(*arguments)

ingest.inspect = checked
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)
try:
    ingest.ingest(DatasetSpec(), sys.argv[1], Path(sys.argv[2]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(TABLE), str(tmp_path_factory.mktemp("hostile"))],
        capture_output=True,
        text=True,
        check=True,
    )
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input(results: dict[str, dict[str, Any]], name: str) -> None:
    outcome = results[name]
    assert not outcome["outcome"].startswith("failed"), outcome
    assert re.search(CASES[name][1], outcome["outcome"]), outcome
    assert outcome["s"] <= MOST_S, outcome
    assert outcome["mb"] <= MOST_MB, outcome


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, "JPEG"), (signal.SIGTERM, "WEBP")])
def test_a_decode_is_interrupted_within_an_image(tmp_path: Path, number: signal.Signals, kind: str) -> None:
    """JPEGs are decoded on threads, WebPs of a few bytes on the caller's own; a set takes longer than the bound."""
    options = {"progressive": True} if kind == "JPEG" else {"lossless": True, "method": 0}
    data = saved(Image.new("RGB", (4_000, 4_000)), kind, **options)
    root = write_folder(tmp_path / "set", {f"a/{index}.{kind.lower()}": data for index in range(NUM_IMAGES)})
    command = [sys.executable, "-c", INGEST, str(root), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "decoding\n"
        child.send_signal(number)
        started = time.monotonic()
        lines = child.stdout.read().splitlines()
        assert time.monotonic() - started < HANG_S
        assert child.wait() == 0
    assert lines[-1] == "interrupted"
    assert len(lines) < NUM_IMAGES / 2
    assert list((tmp_path / "out").iterdir()) == []
