"""Benchmarks of a few seconds run at toy size and write figures; nothing is said of what they are.

The others take minutes even then, most of them waiting for servers: `python -m tests.benchmarks --quick` runs all.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("captions", "ingest", "metrics", "poison", "resident", "views")


RUN_ALL = """
import importlib, sys
from tests.benchmarks.harness import main
names, out = sys.argv[1].split(","), sys.argv[2]
for name in names:
    sys.argv = [name, "--quick", "--device", "cpu", "--out", out]
    benchmark = importlib.import_module(f"tests.benchmarks.bench_{name}")
    main(benchmark.run, benchmark.__doc__)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """All in one process, which imports the peers once: what they print, and the folder of their figures."""
    out = tmp_path_factory.mktemp("figures")
    command = [sys.executable, "-c", RUN_ALL, ",".join(NAMES), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, out


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_at_toy_size(name, ran):
    printed, out = ran
    results = json.loads((out / f"{name}.json").read_text())
    assert results["machine"]["packages"]["torch"]
    for one in results["comparisons"]:
        assert len(one["figures"]["ours"]) == 1
        assert all(math.isfinite(figure) for figures in one["figures"].values() for figure in figures), one
        assert f"| {one['case']} | {one['unit']} |" in printed
    assert len(results["comparisons"]) > 0
