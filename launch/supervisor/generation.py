"""One start of the process group, on one node.

Torch's elastic agent starts the ranks, in a process of its own (node/agent.py). The supervisor asks the ranks by
signals; they answer in their pages (rank/page.py). The files in generations/<g>/ are for people and for other nodes.
"""

import os
import time
from contextlib import suppress
from dataclasses import asdict

from dist_train.errors import UserError
from dist_train.rundir.layout import GenerationDir, RunDir
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.records import NodeRecord

from ..console import mark
from ..diagnosis.activity import Activity, activity
from ..diagnosis.hang import quiet_in_words
from ..diagnosis.nodes import Nodes
from ..diagnosis.watchdog import Hang, Watchdog
from ..node.request import AgentRequest
from ..plan import LaunchPlan
from ..processes import end_descendants, living
from ..rank.page import SIZE, Pages
from ..relay.handle import OutputRelay
from ..scheduler import step_facts
from ..signals import ReceivedSignals
from .agent_starter import AgentStarter
from .ending import Ended, Ending, MemoryWatch, stopped_code
from .exit_watcher import outcome_of, ranks_of, watch_exits
from .generation_number import claim
from .other_nodes import NoOtherNodes
from .run_files import RunFiles
from .stopping import ENDING_S, Stopping

LOOK_S = 0.2
"""Seconds between two looks at the ranks; a signal or the agent's end wakes at once."""
AFTER_END_S = 1.0
"""Seconds from SIGTERM to SIGKILL, for processes that are left when all ranks have ended."""
CHILDREN_IDLE_S = 1.0
"""Seconds that these processes have done nothing before they are sent SIGTERM."""


def begin_generation(plan: LaunchPlan) -> GenerationDir:
    """Claims a folder for this node's next generation, and returns it."""
    facts = {**step_facts(), "command": plan.command, "folder": os.path.realpath(plan.folder)}
    node = NodeRecord(**asdict(ProcessId.myself()), **facts)
    return claim(RunDir(plan.folder), plan.node_name, plan.generation_name, node)


def _pages(count: int) -> Pages:
    try:
        return Pages(count)
    except OSError as error:
        reason = f"no memory file for what the ranks tell the launcher ({error.strerror})"
        raise UserError(f"{reason}: it needs memory, and `ulimit -H -f` of at least {count * SIZE // 1024}") from None


class Generation:
    """Runs the ranks of this node from their start to their end.

    Args:
        told: the end of the generation before, whose failure is not told again.
        others: the other nodes of the generation.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        folder: GenerationDir,
        signals: ReceivedSignals,
        starter: AgentStarter,
        files: RunFiles,
        told: Ended,
        others: NoOtherNodes,
    ) -> None:
        with suppress(OSError):  # where there is no room for logs, the run goes on without them
            plan.logs.mkdir(parents=True, exist_ok=True)
        self._plan, self._folder, self._signals, self._starter, self._files = plan, folder, signals, starter, files
        self._pages = _pages(plan.ranks_per_node + 1)
        self._memory = MemoryWatch()
        self._relay = OutputRelay(plan.shown, plan.nodes, plan.log_size)
        self._stopping = Stopping(plan, signals, folder, self._pages, self._relay.say, others)
        nodes = Nodes(folder, plan.node_name, plan.nodes)
        self._watchdog = Watchdog(folder, self._pages, plan.flags.hang_timeout, nodes)
        self._ending = Ending(self._stopping, starter, self._memory, files, told.signature)

    def run(self) -> Ended:
        """Starts the agent, waits for all ranks, says what went wrong."""
        agent = self._starter.agent(self._request(), self._signals)
        if agent is None:
            self._relay.finish()
            assert self._signals.stop is not None
            return Ended(code=stopped_code(self._plan, self._signals.stop))
        hang = None
        try:
            with watch_exits(self._pages) as exits:
                while agent.poll() is None:
                    hang = hang or self._look_after()
                    self._files.try_again()
                    for line in self._files.take_news():
                        self._relay.say(f"{mark('!', 'yellow')} {line}")
                    if hang or self._stopping.is_forced or self._stopping.is_abandoned:
                        agent.kill()
                    self._signals.wait(LOOK_S, self._starter.wakeup_sockets())
        finally:
            was_killed = agent.poll() is None or hang is not None or self._stopping.is_forced
            was_killed = was_killed or self._stopping.is_abandoned
            agent.kill()
            patience = 0 if was_killed else AFTER_END_S
            sessions = None if was_killed else self._sessions_of_ranks()
            spare = [self._relay.pid, *self._starter.pids]
            if not was_killed and not self._plan.is_training:
                self._let_finish(spare, sessions)
            end_descendants(patience=patience, spare=spare, sessions=sessions)
            self._relay.finish()
        ended = self._ending.conclude(hang, exits)
        self._pages.close()
        return ended

    def _let_finish(self, spare: list[int], sessions: list[int] | None) -> None:
        """Waits for processes that the ranks have left, while these do something: they may have data to write."""
        limit, seen = time.monotonic() + (self._plan.flags.grace or ENDING_S), dict[int, Activity]()
        looked = worked = time.monotonic()
        while (left := living(spare, sessions)) and not self._signals.stop:
            now = time.monotonic()
            if now > limit or now - worked > CHILDREN_IDLE_S:
                return
            if now - looked >= LOOK_S:
                does = {pid: activity(pid, {}) for pid in left}
                if any(does[pid].did_something_since(seen[pid], now - looked) for pid in does if pid in seen):
                    worked = now
                seen, looked = does, now
            time.sleep(0.01)

    def _sessions_of_ranks(self) -> list[int] | None:
        """The sessions whose processes end with the ranks; None for all. Where a program has done its part, a process
        that has begun a session of its own lives on, such as an upload. Where it has failed or was stopped, all end."""
        outcome = outcome_of(self._pages)
        is_well = outcome is not None and outcome.error is None and all(rank.exit_code == 0 for rank in outcome.ranks)
        if self._plan.is_training or not is_well or self._signals.stop is not None:
            return None
        return [rank.pid for rank in ranks_of(self._pages)]

    def _request(self) -> AgentRequest:
        plan = self._plan
        return AgentRequest(
            cwd=os.getcwd(),
            arguments=[*plan.torchrun_arguments],
            program=[*plan.words, *["--supervised"] * plan.is_training],
            run_id=plan.run_id,
            generation=str(self._folder.path.absolute()),
            logs=str(plan.logs.absolute()),
            log=str(plan.agent_log.absolute()),
            signals="ours" if plan.is_training else "default",
            restarts=plan.attempt - 1,
            max_restarts=plan.flags.max_restarts,
            output=self._relay.address,
            pages=self._pages.path,
            ranks=plan.ranks_per_node,
            grace=plan.flags.grace or ENDING_S,
            outcome=str(self._folder.agent(plan.node_name).absolute()),
        )

    def _look_after(self) -> Hang | None:
        """One look at the ranks. Returns what keeps all of them from going on, if anything does."""
        self._stopping.watch_the_time()
        if self._stopping.is_forced:
            return None
        ranks = ranks_of(self._pages)
        alive = [rank for rank in ranks if rank.lives()]
        if len(alive) == len(ranks):
            self._memory.look()
        self._stopping.pass_on(ranks, alive)
        if self._stopping.is_failing:
            return None
        hang = self._watchdog.look(alive, [rank for rank in ranks if rank.ended == 0])
        if hang is not None and not hang.is_over:
            self._relay.say(quiet_in_words(hang, self._plan.node))
            hang = None
        return hang
