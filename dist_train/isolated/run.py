"""`run.py MODULE ARGUMENT…`: one of our modules, without the folder that the command was given in among those that
Python searches for modules: it may be the very run that somebody else has sent, with a torch.py in it.

Python searches this script's own folder instead, and there is nothing else in it.
"""

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    home = str(Path(__file__).resolve().parents[2])
    sys.path.append(home)  # where we are not installed
    # The same for what a rank starts: multiprocessing's servers are `python -c`, which looks there too.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), home])
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
