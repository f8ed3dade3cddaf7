"""`python -m dist_train.report RUN`: writes the page of a run that goes on, when nobody else wants the processor."""

import os
import sys
from pathlib import Path

from dist_train import report

if __name__ == "__main__":
    os.nice(19)
    report.write(Path(sys.argv[1]))
