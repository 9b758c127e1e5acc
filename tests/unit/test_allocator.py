"""Freed memory is kept: counted in page faults, in a process of its own."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from ssl_backdoor.allocator import keep_freed_memory
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.specs import ResNetSpec

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
backbone = build_backbone(ResNetSpec(depth=8, width=16, stem="small"), 1, 0).eval()
images = torch.rand(256, 3, 16, 16)
with torch.inference_mode():
    for round in range(10):
        if round == 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        backbone(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Of five batches through a small backbone, after five others."""
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
def test_freed_memory_is_kept_and_without_it_is_not() -> None:
    kept, as_it_is = page_faults("kept"), page_faults("as it is")
    assert kept < 500
    assert as_it_is > 5000
