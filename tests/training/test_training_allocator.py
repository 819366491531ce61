"""What the allocator is asked for, seen from outside: pages that a step freed are not cleared again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from ebseg_deploy.training.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()


def step():
    held = [np.ones(2**24, np.uint8) for _ in range(4)]


step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_buffers_are_used_again_without_page_faults() -> None:
    def faults(way: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept = faults("keep")
    # 20 times 64 MiB are 327,680 pages of 4 KiB, or 640 of 2 MiB; freshly mapped memory faults at least once for each.
    # Buffers of 16 MiB are below what glibc before 2.35 can be told to keep, 32 MiB.
    assert kept < 100, f"{kept} page faults, {faults('default')} by default"
