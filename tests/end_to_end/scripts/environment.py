"""Writes what a worker sees into FOLDER: `environment.py FOLDER`."""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np

facts = {
    "environment": {name: os.environ[name] for name in os.environ if name not in ("PYTHONPATH", "_")},
    "argv": sys.argv[1:],
    "name": __name__,
    "path": sys.path[0],
    "main": getattr(sys.modules["__main__"], "__file__", None),
    "random": [random.random(), float(np.random.random())],
    "stdin": sys.stdin.read(),
    "loaded": sorted({"launch", "dist_train", "torch"} & sys.modules.keys()),
}
(Path(sys.argv[1]) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(facts))
