"""`make bench`: every benchmark, one after the other; `--quick` only shows that they run."""

import subprocess
import sys
from pathlib import Path

for script in sorted(Path(__file__).parent.glob("bench_*.py")):
    print(f"== {script.stem}", flush=True)
    subprocess.run([sys.executable, "-m", f"tests.benchmarks.{script.stem}", *sys.argv[1:]], check=True)
