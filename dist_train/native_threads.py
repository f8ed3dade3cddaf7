"""The threads of torch's libraries, at the end of a process."""

import atexit
import os
import sys
import threading
import time
from pathlib import Path

SETTLE_S = 1.0
"""At most, for them to come to rest; on a busy machine it takes milliseconds."""


def settle_at_exit() -> None:
    """Lets them come to rest before the interpreter ends, and after all that is registered with atexit later. One that
    drops its hold of a tensor takes the GIL for that, and where the interpreter is ending already, Python before 3.14
    ends the thread, in a place where C++ aborts the process instead: "terminate called without an active exception"
    (pytorch/pytorch#190489)."""
    if sys.version_info < (3, 14):
        atexit.register(_settle)


def _settle() -> None:
    if "torch" not in sys.modules:
        return
    of_python = {thread.native_id for thread in threading.enumerate()}
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        time.sleep(0.001)  # gives up the GIL: who waited for it is at work, or through
        if all(map(_rests, {int(name) for name in os.listdir("/proc/self/task")} - of_python)):
            return


def _rests(thread: int) -> bool:
    """Whether a thread of this process waits for something, or has ended."""
    try:
        state = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state not in "RD"
