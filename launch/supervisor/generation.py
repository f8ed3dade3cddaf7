"""One life of the process group, on one node.

Its ranks are started by torch's elastic agent, in a process of its own (node/agent.py). All that is asked of the ranks
goes by signals, all that they say by files in generations/<g>/.
"""

import os
import signal
import time
from dataclasses import replace
from typing import Any

from dist_train.errors import ExitCode
from dist_train.rundir.records import read_all, read_json, state_of, write_json
from launch.console import mark, say
from launch.diagnosis import hang as hangs
from launch.diagnosis.advice import port_taken
from launch.diagnosis.evidence import read_calls
from launch.diagnosis.explain import Scene, explain
from launch.diagnosis.failures import Failure, exit_code, find_failures, first_cause
from launch.diagnosis.native_crash import native_death, tail
from launch.diagnosis.nodes import Nodes
from launch.diagnosis.verdict import as_record, signature
from launch.diagnosis.watchdog import Hang, Watchdog
from launch.plan import LaunchPlan, host, run_choice
from launch.processes import catches, is_alive, myself, send, sweep
from launch.relay.handle import OutputRelay
from launch.signals import Inbox
from launch.slurm.place import step_facts
from launch.supervisor.agent_starter import Agent, Starter
from launch.supervisor.exit_watcher import Deaths, ranks_of
from launch.supervisor.generation_number import claim
from launch.supervisor.node_loss import ECHOES

TICK = 0.2
"""Seconds between two looks at the ranks; a signal or the agent's end wakes at once."""
AFTER_FAILURE = 3.0
"""Seconds that ranks have to end by themselves once one has failed."""
AFTER_END = 1.0
"""Seconds that other processes have to end once all ranks have."""


class Generation:
    """One life of the process group, on this node."""

    def __init__(self, plan: LaunchPlan, inbox: Inbox, starter: Starter) -> None:
        self.plan, self.inbox = plan, inbox
        self.starter = starter
        self.host = str(myself()["host"])
        self.name = f"node{plan.node}" if plan.node is not None else self.host
        facts = {**myself(), **step_facts(), "command": plan.command}
        self.folder = claim(plan.folder / "generations", self.name, plan.start_name, facts)
        suffix = plan.suffix
        self.outcome = self.folder / f"agent{suffix}.json"
        self.verdict = self.folder / f"verdict{suffix}.json"
        self.agent_log = plan.logs / f"agent{suffix}.log"
        self.told: tuple | None = None
        """What the failure was, so that the same is not told twice."""
        self._asked: set[tuple[int, int]] = set()
        self._ended_by_us: set[int] = set()
        self._failing_since: float | None = None
        self._announced = False
        self._deadline: float | None = None
        self._out_of_time = False
        self._nothing_to_save = False
        self._watchdog = Watchdog(self.folder, plan.hang_timeout, Nodes(self.folder, self.name, plan.nodes))
        self._hang: Hang | None = None
        self.knows_no_cause = False
        """It failed, and this node has seen nothing but that another was gone."""

    def run(self, told: tuple | None) -> int:
        """Starts the agent, waits for all ranks, says what went wrong. Returns the exit code so far."""
        kills = host.oom_kills()
        self.memory = host.memory()
        self.plan.logs.mkdir(parents=True, exist_ok=True)
        self.output = OutputRelay(self.plan)
        agent = self.starter.agent(self._request(), self.inbox)
        if agent is None:
            self.output.finish()
            return self._stopped(self.inbox.stop or signal.SIGTERM)
        self.deaths = Deaths(self.folder / "ranks", agent.pid, self.host)
        try:
            with self.deaths:
                while agent.poll() is None:
                    self._look_after(agent)
                    self.inbox.wait(TICK, self.starter.news())
        finally:
            killed = agent.poll() is None or self._is_forced()
            agent.kill()
            sweep(patience=0 if killed else AFTER_END, spare=[self.output.pid, *self.starter.pids])
            self.output.finish()
            agent.close()
        if self._nothing_to_save and self.inbox.stop is not None:
            return self._stopped(self.inbox.stop)
        if self._hang is not None:
            return self._hung(self._hang)
        if self.inbox.kill is not None:
            return self._wrote("stopped", _code_of(self.inbox.kill))
        if self._out_of_time and self.inbox.stop is not None:
            return self._wrote("stopped", self._stopped(self.inbox.stop))
        if self.inbox.stop is not None and not self.plan.is_training:
            return self._wrote("stopped", self._stopped(self.inbox.stop))
        outcome = read_json(self.outcome) or {"error": "it died", "ranks": []}
        if outcome["error"] is None and all(rank["exit_code"] == 0 for rank in outcome["ranks"]):
            return self._ended_well()
        return self._ended_badly(outcome, told, out_of_memory=host.oom_kills() > kills)

    def _request(self) -> dict[str, Any]:
        """What the agent is told."""
        plan = self.plan
        return {
            "cwd": os.getcwd(),
            "arguments": [*plan.torchrun_arguments, *["--supervised"] * plan.is_training],
            "generation": str(self.folder.absolute()),
            "logs": str(plan.logs.absolute()),
            "log": str(self.agent_log.absolute()),
            "signals": "ours" if plan.is_training else "default",
            "restarts": [plan.attempt - 1, plan.max_restarts],
            "output": self.output.address,
            "outcome": str(self.outcome.absolute()),
        }

    # ------------------------------------------------------------ while it runs

    def _look_after(self, agent: Agent) -> None:
        self._watch_the_time()
        if self._is_forced():
            agent.kill()
            return
        sessions = ranks_of(agent.pid, self.host, self.folder / "ranks")
        alive = [session for session in sessions if is_alive(session)]
        if len(alive) == len(sessions):  # once one is dead, what it used is free again
            self.memory = host.memory()
        if self.inbox.stop is not None:
            self._pass_on_stop(self.inbox.stop, sessions, alive)
        for number in self.inbox.take_others():
            self._ask(alive, number, again=True)
        self._end_stragglers(sessions, alive)
        if self._failing_since is None:
            self._hang = self._watchdog.look(alive, [session for session in sessions if session.get("ended") == 0])
            for line in self._watchdog.slow_ranks():
                self.output.say(f"{mark('!', 'yellow')} {line}")

    def _is_forced(self) -> bool:
        """Whether everything is to end at once."""
        return self.inbox.kill is not None or self._out_of_time or self._hang is not None

    def _watch_the_time(self) -> None:
        """Sees whether a stop was asked for so long ago that the last checkpoint has to do."""
        if self.inbox.stop is None or self.plan.grace is None or self._out_of_time:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + self.plan.grace
        if time.monotonic() < self._deadline:
            return
        newest = run_choice.newest_checkpoint(self.plan.folder)
        left = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        kept = f"ended unsaved; {left}" if self.plan.is_training else "ended"
        self.output.say(f"{mark('!', 'yellow')} not stopped within {self.plan.grace:g} s (--grace): {kept}")
        self._out_of_time = True

    def _pass_on_stop(self, number: int, sessions: list[dict], alive: list[dict]) -> None:
        if not self.plan.is_training:
            self._pass_on_to_program(number, sessions, alive)
        elif self._ask(alive, number) or self._asked:
            if not self._announced:
                self.output.say("  saving, then stopping … once more to kill at once")
            self._announced = True
        elif alive or not sessions:  # no rank has got as far as training: there is nothing to save
            self.inbox.kill, self._nothing_to_save = number, True

    def _pass_on_to_program(self, number: int, sessions: list[dict], alive: list[dict]) -> None:
        """As torchrun does: the ranks get the signal; but one that only asks to be started again may kill nobody who
        knows nothing of it."""
        if not alive and not sessions:
            self.inbox.kill = number
        for session in alive:
            pid = session["pid"]
            if (pid, number) not in self._asked:
                self._asked.add((pid, number))
                send(pid, number if number != signal.SIGUSR1 or catches(pid, number) else signal.SIGTERM)
        if alive and not self._announced:
            self.output.say("  stopping … once more to kill at once")
            self._announced = True

    def _ask(self, alive: list[dict], number: int, *, again: bool = False) -> bool:
        """Sends the signal to the ranks that have a handler for it, once. Returns whether there was any."""
        ready = [session["pid"] for session in alive if catches(session["pid"], number)]
        for pid in ready:
            if again or (pid, number) not in self._asked:
                self._asked.add((pid, number))
                send(pid, number)
        return bool(ready)

    def _end_stragglers(self, sessions: list[dict], alive: list[dict]) -> None:
        """Once a rank has failed the others have a few seconds: torch's agent would wait for half a minute."""
        gone = [session for session in sessions if session not in alive and session.get("ended") != 0]
        if not gone and not any((self.folder / "errors").iterdir()):
            return
        self._failing_since = self._failing_since or time.monotonic()
        if time.monotonic() - self._failing_since < AFTER_FAILURE:
            return
        for session in alive:
            self._ended_by_us.add(session["rank"])
            send(session["pid"], signal.SIGKILL, group=True)

    # ------------------------------------------------------------ how it ended

    def _ended_well(self) -> int:
        state = state_of(self.plan.folder)
        by_name = getattr(signal, str(state.get("signal")), None)
        number = self.inbox.stop or by_name
        if number is None or state.get("status") == "done":
            return self._wrote("done", ExitCode.DONE)
        return self._wrote("stopped", self._stopped(number))

    def _wrote(self, outcome: str, code: int) -> int:
        write_json(self.verdict, as_record(outcome, code))
        return code

    def _stopped(self, number: int) -> int:
        if number == signal.SIGUSR1 or (number == signal.SIGTERM and self.plan.scheduler):
            return ExitCode.REQUEUE
        return _code_of(number)

    def _ended_badly(self, outcome: dict, told: tuple | None, *, out_of_memory: bool) -> int:
        found = self._failures(outcome) if self.starter.loss() is None else []
        cause = first_cause(found)
        if self.plan.nodes > 1 and self.starter.loss() is None and (cause is None or cause.kind == "peer"):
            time.sleep(AFTER_END)  # the node that it began on may still be writing down why
            found = self._failures(outcome)
            cause = first_cause(found)
        self.knows_no_cause = cause is None or cause.kind in ECHOES
        if self.knows_no_cause and self.plan.nodes > 1 and self.inbox.stop is not None:
            return self._stopped(self.inbox.stop)  # a node that had nothing to save has ended before us
        if cause is None:
            code, text = ExitCode.USER_CODE, self._agent_failed(outcome)
        else:
            scene = Scene(
                logs=self.plan.logs,
                checkpoint=run_choice.newest_checkpoint(self.plan.folder),
                out_of_memory=out_of_memory,
                here=self.host,
                memory=self._memory(out_of_memory),
                job=self.plan.environment.get("DIST_TRAIN_JOB"),
            )
            code = exit_code(cause, out_of_memory=out_of_memory)
            if self.plan.is_training and code == ExitCode.CONFIG and not (cause.report or {}).get("is_user_error"):
                code = ExitCode.USER_CODE  # a user's code has called sys.exit(2); of ours it would say: not begun
            text = explain(cause, found, scene)
        self.told = signature(cause)
        same = cause is not None and self.told == told
        say(f"{mark('✗', 'red')} rank {cause.rank} failed the same way again" if cause and same else text)
        write_json(self.verdict, as_record("failed", code, cause, found))
        return code

    def _failures(self, outcome: dict) -> list[Failure]:
        sessions, reports = read_all(self.folder / "ranks"), read_all(self.folder / "errors")
        died = self.deaths.stamps()
        logs = {rank: tail(self.plan.logs / f"rank{rank}.log", 400) for rank in died}
        native = {rank: found for rank, lines in logs.items() if (found := native_death(lines))}
        called = {session["rank"]: read_calls(self.folder, session["rank"]) for session in sessions}
        return find_failures(sessions, reports, outcome["ranks"], self._ended_by_us, died, native, called)

    def _memory(self, out_of_memory: bool) -> host.Memory:
        """As it was before the death; the peak is the kernel's own."""
        return replace(self.memory, peak=host.memory().peak) if out_of_memory else self.memory

    def _agent_failed(self, outcome: dict) -> str:
        if (loss := self.starter.loss()) is not None:
            return f"{mark('✗', 'red')} all ranks of this node are gone: {loss}"
        why = outcome["error"] or "no rank said why"
        if "Address already in use" in why and self.plan.rendezvous.master_port:
            why = port_taken(self.plan.rendezvous.master_port)
        return f"{mark('✗', 'red')} torch's elastic agent failed: {why}\n  its log: {self.agent_log}"

    def _hung(self, hang: Hang) -> int:
        finding = hangs.find(hang.evidence)
        whole = hangs.explain(hang, finding)
        say(whole if self.plan.node in (0, None) else whole.split("\n")[0])
        write_json(self.verdict, hangs.as_record(hang, finding, ExitCode.HANG))
        return ExitCode.HANG


def _code_of(number: int) -> int:
    """128 + signal, as a shell has it: a forced end saved nothing, so it is never 75."""
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
