"""The scheduler that may have started this launcher, as the rest of the launcher sees it.

There is one, SLURM. The next is a folder beside slurm/ that offers the same, and this file chooses between them.
"""
# ruff: noqa: F401  (imported to be imported from here)

from .slurm.allocation import everywhere
from .slurm.jobs import newest_launchers, of_run
from .slurm.orphans import end_older_launches
from .slurm.place import Place, find_place, step_facts, without_job
from .slurm.queue import JobStatus, kill_hint, look
from .slurm.stop import interrupt, keep_out
