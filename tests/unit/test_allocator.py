"""Freed memory is kept inside and handed back after: counted in page faults, in a process of its own."""

import platform
import subprocess
import sys
from typing import NamedTuple

import pytest

COUNT = """
import contextlib, resource, sys, torch
from pathlib import Path
from ssl_backdoor.allocator import retain_freed_memory
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.specs import ResNetSpec

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_kb():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

torch.set_num_threads(1)
backbone = build_backbone(ResNetSpec(depth=8, width=16, stem="small"), 1, 0).eval()
images = torch.rand(256, 3, 16, 16)
with retain_freed_memory() if sys.argv[1] == "kept" else contextlib.nullcontext(), torch.inference_mode():
    for round in range(25):
        if round == 20:
            before = faults()
        backbone(images)
    found, inside_kb = faults() - before, resident_kb()
print(found, inside_kb - resident_kb())
"""


class Counted(NamedTuple):
    """Page faults of five batches through a small backbone, after twenty others; kB that came free on leaving.

    Where small objects lie differs from process to process; one time in thirty a tensor or two (1,024 pages each) finds
    no gap left for it and the heap grows once more.
    """

    faults: int
    handed_back_kb: int


def counted(how: str) -> Counted:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, timeout=120, check=True)
    return Counted(*map(int, done.stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
@pytest.mark.slow
def test_freed_memory_is_kept_inside_and_handed_back_after() -> None:
    kept, as_it_is = counted("kept"), counted("as it is")
    assert as_it_is.faults > 5000
    assert kept.faults < as_it_is.faults / 4
    assert kept.handed_back_kb > 4000
