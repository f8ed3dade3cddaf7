"""What a process frees, it keeps, so that a step does not ask the kernel for the same pages again."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from dist_train.memory import keep_freed_memory
if sys.argv[1] == "keeps":
    keep_freed_memory()
for step in range(60):
    if step == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(1 << 20) for _ in range(8)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(os, "confstr") or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="no glibc")
def test_memory_that_was_freed_is_not_asked_for_again():
    def faults(how, **more):
        words = [sys.executable, "-c", PROGRAM, how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **more}).stdout)

    pages = 20 * 8 * (4 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults("keeps") < pages / 20
    # Somebody who has set malloc's own variables is left alone.
    assert faults("keeps", MALLOC_TRIM_THRESHOLD_="0", MALLOC_TOP_PAD_="0") > pages / 2
