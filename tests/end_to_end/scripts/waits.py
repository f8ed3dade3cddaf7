"""Says that it is there and waits to be ended: `waits.py FOLDER`. It knows of no signal."""

import os
import sys
import time
from pathlib import Path

Path(sys.argv[1], f"ready{os.environ['RANK']}").touch()
time.sleep(600)
