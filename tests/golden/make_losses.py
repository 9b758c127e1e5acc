"""Writes losses.json: the first 20 losses of every method and of the defence. A diff needs a sentence in its commit."""

import json
import sys
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_training import OBJECTIVES, train  # the tests' helpers lie one folder up


def main() -> None:
    losses = {}
    for name in OBJECTIVES:
        with tempfile.TemporaryDirectory() as folder:
            train(name, Path(folder))
            curves = pq.read_table(Path(folder) / "curves.parquet")
            losses[name] = curves.filter(pc.equal(curves["name"], "loss"))["value"].to_pylist()
    (Path(__file__).parent / "losses.json").write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
