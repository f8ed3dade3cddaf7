"""One save with retention, in a process that stops first, so that strace can be attached to exactly that.

Reads orders from stdin, a JSON object a line, forks for each, and prints `stopped PID`, then `ended STATUS`: 0 when the
save was done, the errno when the disk refused, minus a signal's number. It has no torch, and starts no thread.
"""

import errno
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from dist_train.checkpoint.store import CheckpointStore
from dist_train.rundir.lease import Fence

KEEP = 2
FAILED = 255


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(save(order))
        os.waitpid(pid, os.WUNTRACED)
        print("stopped", pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


def save(order: dict[str, Any]) -> int:
    """Saves and retains as the process that writes checkpoints does."""
    try:
        run_dir = Path(order["run_dir"])
        fence = Fence(run_dir, order["number"], order["token"])
        store = CheckpointStore(run_dir / "checkpoints", KEEP, generation=2, fence=fence)
        files = {name: bytes.fromhex(content) for name, content in order["files"].items()}
        if order["limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], resource.RLIM_INFINITY))
        os.kill(os.getpid(), signal.SIGSTOP)
        store.save(order["step"], files, {})
        store.retain(None)
    except OSError as error:
        return error.errno or errno.EIO
    except BaseException:
        traceback.print_exc()
        return FAILED
    return 0


if __name__ == "__main__":
    main()
