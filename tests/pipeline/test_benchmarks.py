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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_at_toy_size(name, tmp_path):
    command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}", "--quick", "--device", "cpu", "--out", tmp_path]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / f"{name}.json").read_text())
    assert results["machine"]["packages"]["torch"]
    for one in results["comparisons"]:
        assert len(one["figures"]["ours"]) == 1
        assert all(math.isfinite(figure) for figures in one["figures"].values() for figure in figures), one
        assert f"| {one['case']} | {one['unit']} |" in ran.stdout
    assert len(results["comparisons"]) > 0
