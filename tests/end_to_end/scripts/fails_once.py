"""Fails until it has been started again: `fails_once.py FOLDER`."""

import os
import sys
from pathlib import Path

count, most = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["TORCHELASTIC_MAX_RESTARTS"]
if count == "0":
    raise ValueError("the first time")
Path(sys.argv[1], f"rank{os.environ['RANK']}").write_text(f"{count} of {most}")
