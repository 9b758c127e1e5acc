"""Writes losses.json: the first 20 losses of every method and of the defence. A diff needs a sentence in its commit.

`python -m tests.golden.make_losses`.
"""

import json
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.support.tiny_training import OBJECTIVES, train


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
