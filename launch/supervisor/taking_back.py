"""A training that ends before its first step leaves its run directory as it was: exit code 2 promises that."""

import contextlib
import fcntl
import time

from dist_train.rundir.layout import RunDir, rank_log
from dist_train.rundir.reading import open_regular
from dist_train.rundir.snapshot import IN_LOG_DIR, FolderSnapshot

from ..plan import LaunchPlan

OTHERS_END_S = 10.0
"""Seconds that the other nodes' launchers have to end after this one."""
_LAST_S = 1.0
"""Seconds that the first node's launcher takes to remove the folders that it has emptied."""


class FoldersBefore:
    """The run directory, and --log-dir, as they were before this launch wrote anything; and the way back to that.
    Another node may have made some of what was there."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._before = [FolderSnapshot(plan.folder)] if plan.is_training else []
        if plan.is_training and plan.flags.log_dir is not None:
            self._before.append(FolderSnapshot(plan.logs, IN_LOG_DIR))

    def look_again(self) -> None:
        """Looks once more when the directory is ours. Not with several nodes: another may have begun to write."""
        if self._plan.nodes == 1:
            for place in self._before:
                place.look_again()

    def remove_empty(self) -> bool:
        """Removes the folders that this launch has made, if nothing is in them. Returns whether all are gone."""
        return all([place.remove_empty() for place in self._before])

    def take_back(self) -> None:
        """The first node restores everything once the others have ended; each other node removes what it has made."""
        if self._plan.node == 0:
            self._await_others()
            for place in reversed(self._before):
                place.restore()
        elif self._plan.node:
            self._remove_own()

    def _remove_own(self) -> None:
        """This node's logs, its lock, and what else it has made once the first node is done."""
        plan, run, deadline = self._plan, RunDir(self._plan.folder), time.monotonic() + OTHERS_END_S
        own = {run.lock(plan.node).name, plan.agent_log.name, plan.preload_log.name}
        for rank in range((plan.node or 0) * plan.ranks_per_node, ((plan.node or 0) + 1) * plan.ranks_per_node):
            own |= {name := rank_log(plan.logs, rank).name, f"{name}.1"}
        for place in self._before:
            place.remove(own)
        while not self.remove_empty() and time.monotonic() < deadline:
            if not run.lock(0).exists():  # the first node removes its lock last
                deadline = min(deadline, time.monotonic() + _LAST_S)
            time.sleep(0.1)

    def _await_others(self) -> None:
        """Returns when the launchers of the other nodes, which write in the same directory, have let go of it."""
        run, deadline = RunDir(self._plan.folder), time.monotonic() + OTHERS_END_S
        for path in run.locks():
            with contextlib.suppress(OSError), open(open_regular(path, links=False)) as lock:
                while path != run.lock(0) and time.monotonic() < deadline:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        time.sleep(0.1)
