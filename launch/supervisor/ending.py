"""How a generation's end is told: the exit code, the words for the user, the verdict for machines."""

import signal
import time
from dataclasses import dataclass, replace

from dist_train.config.problems import ConfigError
from dist_train.config.shares import smaller
from dist_train.errors import ExitCode, UserError
from dist_train.memory import Memory, memory
from dist_train.rundir.codec import read_record, read_records
from dist_train.rundir.layout import GenerationDir, RunDir, is_kept, rank_log
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.records import AgentOutcome, ErrorRecord, RankRecord, RunState, VerdictSummary
from dist_train.rundir.runs import newest_checkpoint, shown_path

from ..console import mark, say
from ..diagnosis import collectives
from ..diagnosis import hang as hangs
from ..diagnosis.advice import killed, port_taken
from ..diagnosis.explain import FailureContext, explain
from ..diagnosis.failures import Failure, exit_code, find_failures, first_cause
from ..diagnosis.native_crash import native_death, tail
from ..diagnosis.verdict import as_record
from ..diagnosis.watchdog import Hang
from ..plan import LaunchPlan
from ..plan.host import oom_kills
from .agent_starter import AgentStarter
from .exit_watcher import errors_of, outcome_of, ranks_of
from .other_nodes import Agreed
from .run_files import RunFiles
from .stopping import Stopping, longest_end

ECHOES = ("peer", "ended")
"""Kinds of failure of a rank that has lost its peer, and knows no more than that."""
VERDICT_WAIT_S = 10.0
"""Seconds that another node has to write down why its ranks have ended; one that is gone never will."""
PEER_WRITES_S = 1.0
"""Seconds that another node may still take to write down why its ranks have failed."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a generation ended on this node.

    Attributes:
        code: exit code of the launcher, if no generation follows.
        signature: what the failure was, so that the same is not told twice.
        cause_unknown: the generation failed, and this node knows only that another node was gone.
        is_no_failure: the generation was given up before it began, or lost a node.
    """

    code: int
    signature: tuple[object, ...] | None = None
    cause_unknown: bool = False
    is_no_failure: bool = False


class MemoryWatch:
    """The memory in use before a rank died. Afterwards it is too late to look: what the rank used is free again."""

    def __init__(self) -> None:
        self._kills = oom_kills()
        self._last = memory()

    def look(self) -> None:
        self._last = memory()

    def before_the_death(self) -> tuple[Memory, bool]:
        """The memory, and whether the kernel has killed for want of it in this generation: then the peak is the
        kernel's."""
        ran_out = oom_kills() > self._kills
        return replace(self._last, peak=memory().peak) if ran_out else self._last, ran_out


class Ending:
    """Says how a generation ended, once none of its processes is left.

    Args:
        stopping: the generation's.
        told: the failure of the generation before, which is not told again.
    """

    def __init__(
        self,
        stopping: Stopping,
        starter: AgentStarter,
        memory: MemoryWatch,
        files: RunFiles,
        told: tuple[object, ...] | None,
    ) -> None:
        self._pages, self._files = stopping.pages, files
        self._plan, self._generation, self._signals = stopping.plan, stopping.generation, stopping.signals
        self._stopping, self._starter, self._memory, self._told = stopping, starter, memory, told

    def conclude(self, hang: Hang | None, died: dict[int, int]) -> Ended:
        """Tells the user how the generation ended, writes the verdict, and returns both in short.

        Args:
            hang: what kept all ranks from going on; None if nothing did.
            died: for each rank that has ended, when that was seen, in ns since boot.
        """
        stop = self._signals.stop
        if self._stopping.others.is_void and stop is None:
            return Ended(code=ExitCode.REQUEUE, is_no_failure=True)
        if self._stopping.had_nothing_to_save and stop is not None:
            self._say_how_to_go_on()
            return Ended(code=stopped_code(self._plan, stop))
        if hang is not None:
            return self._hung(hang)
        if self._signals.kill is not None:
            self._say_how_to_go_on()
            return self._wrote("stopped", signal_code(self._signals.kill))
        if stop is not None and (self._stopping.is_out_of_time or not self._plan.is_training):
            return self._wrote("stopped", stopped_code(self._plan, stop))
        outcome = outcome_of(self._pages) or AgentOutcome(error="it died", ranks=[])
        if self._stopping.is_abandoned and self._has_done_its_part():
            outcome = AgentOutcome(error=None, ranks=[])  # its agent was waiting only for the other node's
        if outcome.error is not None or any(rank.exit_code != 0 for rank in outcome.ranks):
            return self._badly(outcome, died)
        state = RunState.of(self._plan.folder)
        number = self._signals.stop or signal.Signals.__members__.get(str(state.signal))
        if number is None or state.status == "done":
            return self._wrote("done", ExitCode.DONE)
        return self._wrote("stopped", stopped_code(self._plan, number))

    def _say_how_to_go_on(self) -> None:
        """Tells the user how to go on, after an end without a save."""
        folder, newest = self._plan.folder, newest_checkpoint(self._plan.folder)
        left = f"the last checkpoint is {newest}. To go on from it" if newest else "nothing was saved. To begin again"
        if self._plan.is_training and is_kept(folder) and (newest or RunDir(folder).config.is_file()):
            say(f"ended at once; {left}: dist-train train --resume {shown_path(folder)}")

    def _has_done_its_part(self) -> bool:
        """Whether all ranks of this node have ended well, and a training has come to its end."""
        is_over = not self._plan.is_training or RunState.of(self._plan.folder).reached_its_end
        return is_over and [one.ended for one in ranks_of(self._pages)] == [0] * self._plan.ranks_per_node

    def _wrote(self, outcome: str, code: int) -> Ended:
        return self._write(as_record(outcome, code), Ended(code=code))

    def _write(self, verdict: dict, ended: Ended) -> Ended:
        self._files.write(self._generation.verdict(self._plan.node_name), verdict)
        return ended

    def _hung(self, hang: Hang) -> Ended:
        finding = hangs.find(hang.evidence)
        text = hangs.explain_hang(hang, finding)
        say(text if self._plan.node in (0, None) else text.split("\n")[0])
        say(hangs.end_in_words(hang, finding, ExitCode.HANG))
        return self._write(hangs.hang_record(hang, finding, ExitCode.HANG), Ended(code=ExitCode.HANG))

    def _badly(self, outcome: AgentOutcome, died: dict[int, int]) -> Ended:
        plan, loss = self._plan, self._starter.server_death()
        found = self._failures(outcome, died) if loss is None else []
        cause = first_cause(found)
        if plan.nodes > 1 and loss is None and (cause is None or cause.kind == "peer"):
            time.sleep(PEER_WRITES_S)
            found = self._failures(outcome, died)
            cause = first_cause(found)
        cause_unknown = cause is None or cause.kind in ECHOES
        if cause_unknown and plan.nodes > 1 and self._signals.stop is not None:  # a node with nothing to save has left
            return Ended(code=stopped_code(plan, self._signals.stop), cause_unknown=True)
        code, text = self._told_to_the_user(cause, found, outcome, loss)
        if cause_unknown and loss is None:
            agreed = self._stopping.others.agree(code)
            if agreed.lost:
                return self._lost(agreed, cause, found)
            code = agreed.code
        signature = cause.signature if cause else None
        same = cause is not None and signature == self._told
        say(f"{mark('✗', 'red')} rank {cause.rank} failed the same way again" if cause and same else text)
        ended = Ended(code=code, signature=signature, cause_unknown=cause_unknown)
        return self._write(as_record("failed", code, cause, found), ended)

    def _lost(self, agreed: Agreed, cause: Failure | None, found: list[Failure]) -> Ended:
        """Another node's launcher is gone: one line is enough."""
        newest = newest_checkpoint(self._plan.folder)
        kept = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        who = f"{', '.join(agreed.lost)} (of {self._plan.nodes} nodes)"
        say(f"{mark('✗', 'red')} lost {who}: no word from its launcher; {kept}")
        record = {**as_record("failed", agreed.code, cause, found), "lost": agreed.lost}
        return self._write(record, Ended(code=agreed.code, is_no_failure=True))

    def _failures(self, outcome: AgentOutcome, died: dict[int, int]) -> list[Failure]:
        ranks, errors = ranks_of(self._pages), errors_of(self._pages)
        here = {one.rank for one in ranks}  # the other nodes' ranks are known by their files
        elsewhere = [one for one in read_records(RankRecord, self._generation.ranks) if one.rank not in here]
        errors += [one for one in read_records(ErrorRecord, self._generation.errors) if one.rank not in here]
        logs = {rank: tail(rank_log(self._plan.logs, rank), 400) for rank in died}
        return find_failures(
            [*ranks, *elsewhere],
            errors,
            outcome.ranks,
            self._stopping.ended_by_us,
            died,
            {rank: found for rank, lines in logs.items() if (found := native_death(lines))},
            {one.rank: collectives.read(self._pages.head(one.local_rank)) for one in ranks},
        )

    def _told_to_the_user(
        self, cause: Failure | None, found: list[Failure], outcome: AgentOutcome, loss: str | None
    ) -> tuple[int, str]:
        """The exit code and the text."""
        before, out_of_memory = self._memory.before_the_death()
        context = FailureContext(
            logs=self._plan.logs,
            checkpoint=newest_checkpoint(self._plan.folder),
            out_of_memory=out_of_memory,
            here=ProcessId.myself().host,
            memory=before,
            smaller=_smaller_batches(self._plan),
            job=self._plan.environment.get("DIST_TRAIN_JOB"),
        )
        if cause is None:
            return self._without_ranks(outcome, loss, context)
        code = exit_code(cause, out_of_memory=out_of_memory)
        is_ours = cause.report is not None and cause.report.is_user_error
        if self._plan.is_training and code == ExitCode.CONFIG and not is_ours:
            code = ExitCode.USER_CODE  # the user's code called sys.exit(2); our own 2 means: nothing has begun
        return code, explain(cause, found, context)

    def _without_ranks(self, outcome: AgentOutcome, loss: str | None, context: FailureContext) -> tuple[int, str]:
        """Exit code and text of an end that no rank has caused."""
        sign = mark("✗", "red")
        if context.out_of_memory:
            who = "the process that they are forked from" if loss else "torch's elastic agent"
            text = f"all ranks of this node are gone: {who} was killed by the kernel for want of memory (OOM killer)"
            return ExitCode.OUT_OF_MEMORY, f"{sign} {text}\n  {killed(context)}"
        if loss is not None:
            return ExitCode.USER_CODE, f"{sign} all ranks of this node are gone: {loss}"
        why, port = outcome.error or "no rank said why", self._plan.rendezvous.master_port
        why = port_taken(port) if "Address already in use" in why and port else why
        return ExitCode.USER_CODE, f"{sign} torch's elastic agent failed: {why}\n  its log: {self._plan.agent_log}"


def _smaller_batches(plan: LaunchPlan) -> str | None:
    """What the user can set when a training has run out of memory; None where its config cannot be read, or not yet."""
    if not plan.is_training:
        return None
    from dist_train.config.source import load  # its import takes 0.1 s, which other programs need not wait for

    try:
        return smaller(load(str(RunDir(plan.folder).config), (), recorded=True), plan.world_size)
    except (OSError, UserError, ConfigError):
        return None


def stopped_code(plan: LaunchPlan, number: int) -> int:
    """The exit code of a launch that a signal has stopped in good order."""
    if number == signal.SIGUSR1 or (number == signal.SIGTERM and plan.place):
        return ExitCode.REQUEUE
    return signal_code(number)


def signal_code(number: int) -> int:
    """130 for SIGINT, else 143: 128 + the signal's number, as in a shell."""
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED


# ---------------------------------------------------------------- what the other nodes say
# A rank that has lost its peer knows no more than that. What the other nodes say decides what is to be done.


def agreed_code(plan: LaunchPlan, generation: GenerationDir, code: int, *, last: bool) -> int:
    """The exit code of a generation whose ranks here know only that another node was lost: that node's, if it says one.

    Args:
        generation: its folder, which holds this node's own verdict already.
        code: this node's own.
        last: this launcher starts no further generation.

    Returns:
        75 when a node was lost, so that the scheduler starts again on nodes that live.
    """
    if plan.place is None or plan.nodes == 1 or plan.node is None:
        return code
    verdicts = _verdicts(plan, generation)
    for one in verdicts.values():
        if one and one.cause and one.cause.kind not in ECHOES and one.exit_code in set(ExitCode):
            return one.exit_code
    silent = [f"node {node}" for node, one in verdicts.items() if one is None]
    if silent:
        say(f"{mark('!', 'yellow')} {', '.join(silent)} left no word: lost, or the launcher there was killed")
        return ExitCode.REQUEUE
    return ExitCode.REQUEUE if last and any(one and one.cause for one in verdicts.values()) else code


def _verdicts(plan: LaunchPlan, generation: GenerationDir) -> dict[int, VerdictSummary | None]:
    """The verdicts of the other nodes, by number; None where a node has written none in time."""
    others = [node for node in range(plan.nodes) if node != plan.node]
    deadline = time.monotonic() + VERDICT_WAIT_S + longest_end(plan)
    while True:
        found = {node: read_record(VerdictSummary, generation.verdict(f"node{node}")) for node in others}
        if all(found.values()) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
