"""What all benchmarks share: paired repetitions, ratios with their spread, the machine's facts, a table, JSON.

A benchmark is a module ``bench_NAME.py`` with ``run(options)``, which yields ``Comparison``s, and ends in
``main(run, __doc__)``. Nothing here or there asserts a time.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

Result = TypeVar("Result")
REPETITIONS = 5
PACKAGES = (
    "torch",
    "torchvision",
    "lightly",
    "kornia",
    "open-clip-torch",
    "webdataset",
    "ray",
    "prefect",
    "mlflow",
    "scipy",
    "pyarrow",
    "pillow",
)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    quick: bool
    """Toy sizes and one repetition: shows that it runs."""
    data: str | None
    """CIFAR-10 as an archive or folder; None takes the embedded scenes."""
    device: str
    """cpu or cuda."""

    @property
    def repetitions(self) -> int:
        """How often everything is measured."""
        return 1 if self.quick else REPETITIONS


@dataclass(frozen=True)
class Comparison:
    """One line of the table: ours beside others, measured in one run."""

    case: str
    unit: str
    figures: Mapping[str, list[float]]
    """Of each contender one figure a repetition; "ours" is one of them."""
    better: Literal["more", "less"] = "more"
    bars: Mapping[str, float] = field(default_factory=dict)
    """What ``ratio`` to a contender is asked for, if any."""
    note: str = ""

    def ratios(self) -> dict[str, list[float]]:
        """Ours over each other contender, repetition by repetition; above 1 ours is better, whatever the unit."""
        ours = self.figures["ours"]
        return {
            name: [a / b if self.better == "more" else b / a for a, b in zip(ours, values, strict=True)]
            for name, values in self.figures.items()
            if name != "ours"
        }

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured."""
        ratios = {
            name: {**spread(values), **({"bar": self.bars[name]} if name in self.bars else {})}
            for name, values in self.ratios().items()
        }
        named = {"case": self.case, "unit": self.unit, "better": self.better, "note": self.note}
        return {**named, "figures": {name: list(values) for name, values in self.figures.items()}, "ratios": ratios}


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and most."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def paired(contenders: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Every contender's figure once a repetition, in turns from either end, so that drifts fall on all alike."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions):
        names = list(contenders) if repetition % 2 == 0 else list(contenders)[::-1]
        for name in names:
            figures[name].append(contenders[name]())
    return figures


def alone(work: Callable[..., Result], *given: object) -> Result:
    """``work`` in a process of its own, so that its memory is this work's; both must be picklable."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, work.__module__])  # not imported again by every one
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *given).result()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of ``work``, and the megabytes (10^6) by which this process's peak of resident memory grew meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident now
    before, began_s = _resident_mb("VmRSS"), time.perf_counter()
    work()
    return time.perf_counter() - began_s, max(0.0, _resident_mb("VmHWM") - before)


def _resident_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    facts = {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "cpu_formats": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if _is_installed(name)},
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def rows(results: Mapping[str, Any]) -> Iterator[str]:
    """The results of one benchmark as lines of a Markdown table, one a peer or ceiling, or one for ours alone."""
    for one in results["comparisons"]:
        ours = spread(one["figures"]["ours"])["median"]
        if not one["ratios"]:
            yield f"| {one['case']} | {one['unit']} | {ours:,.4g} | | | |"
        for name, ratio in one["ratios"].items():
            theirs = spread(one["figures"][name])["median"]
            bar = (
                ""
                if "bar" not in ratio
                else f"{ratio['bar']:g}, {'' if ratio['median'] >= ratio['bar'] else 'not '}reached"
            )
            yield (
                f"| {one['case']} | {one['unit']} | {ours:,.4g} | {name}: {theirs:,.4g} "
                f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | {bar} |"
            )


HEAD = ("| case | unit | ours | peer or ceiling | ratio, median (least to most) | asked |", "|---|---|---|---|---|---|")


def main(
    run: Callable[[Options], Iterable[Comparison]], description: str | None, appendix: Callable[[], str] | None = None
) -> None:
    """The command line of one benchmark: a table on stdout, JSON where ``--out`` names a folder.

    ``appendix`` makes Markdown that stands below the table: what is computed, not measured.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes, one repetition: does it run?")
    parser.add_argument(
        "--data", type=os.path.abspath, help="CIFAR-10, as an archive or a folder; without it the embedded scenes"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--out", type=Path, help="folder in which the figures are written as NAME.json, of a GPU NAME_gpu.json"
    )
    given = parser.parse_args()
    options = Options(quick=given.quick, data=given.data, device=given.device)
    name = Path(sys.argv[0]).stem.removeprefix("bench_")
    results: dict[str, Any] = {
        "benchmark": name,
        "repetitions": options.repetitions,
        "machine": machine(options.device),
    }
    results["comparisons"] = []
    file = given.out and given.out / f"{name}{'_gpu' if options.device == 'cuda' else ''}.json"
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    print("\n".join(HEAD), flush=True)
    for comparison in run(options):
        results["comparisons"].append(comparison.as_json())
        print("\n".join(rows({"comparisons": [comparison.as_json()]})), flush=True)
        _keep(results, file)  # each at once: what ends a benchmark early takes only the rest
    if appendix:
        results["appendix"] = appendix()
        print("\n" + results["appendix"], flush=True)
        _keep(results, file)


def _keep(results: Mapping[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(results, indent=1) + "\n")
