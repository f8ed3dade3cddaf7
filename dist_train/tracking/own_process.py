"""A process of ours beside the training, for what no step may wait for."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dist_train


def begin_process(module: str, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Starts `python -m module`, in a session of its own: Ctrl-C is for the training."""
    root = str(Path(dist_train.__file__).parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    command = [sys.executable, "-P", "-m", module, *words]
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, "PYTHONPATH": path}, **options)
