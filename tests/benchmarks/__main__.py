"""`make bench`: every benchmark, one after the other, each in a process of its own; then the table of all ratios.

    python -m tests.benchmarks [NAME ...] [--quick] [--data CIFAR10] [--write]

``--quick`` only shows that they run. ``--write`` keeps the figures in results/ and sets the table of README.md anew.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import HEAD, RESULTS, rows

HERE = Path(__file__).parent
MARKS = ("<!-- figures -->\n", "<!-- end of figures -->\n")


def table() -> str:
    """All kept results, a heading and a table each."""
    parts = []
    for file in sorted(RESULTS.glob("*.json")):
        results = json.loads(file.read_text())
        facts = results["machine"]
        where = facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['cpu_formats'])}"
        notes = [f"{one['case']}: {one['note']}" for one in results["comparisons"] if one["note"]]
        said = f"{where}; torch {facts['packages']['torch']}; {results['repetitions']} paired repetitions."
        below = ["", results["appendix"]] if "appendix" in results else []
        lines = [f"### {results['benchmark']}\n", said, "", *HEAD, *rows(results), "", *notes, *below]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def main() -> None:
    names = sorted(file.stem.removeprefix("bench_") for file in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    more = ["--quick"] * given.quick + (["--data", given.data] if given.data else [])
    more += ["--out", str(RESULTS)] if given.write else []
    for name in given.names or names:
        print(f"\n## {name}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.bench_{name}", *more], check=True)
    if given.write:
        page = HERE / "README.md"
        before, _, rest = page.read_text().partition(MARKS[0])
        page.write_text(f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main()
