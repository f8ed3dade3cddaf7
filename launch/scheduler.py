"""The scheduler that may have started this launcher, as the rest of the launcher sees it.

There is one, SLURM. The next is a folder beside slurm/ that offers the same, in the words of job.py, and this file
chooses between them.
"""
# ruff: noqa: F401  (imported to be imported from here)

from .slurm.allocation import everywhere
from .slurm.orphans import end_older_launches
from .slurm.place import NAME, VARIABLES, find_place, step_facts, without_job
from .slurm.queue import kill_hint, look
from .slurm.stop import interrupt, keep_out
