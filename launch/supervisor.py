"""The launcher's own process: opens one generation after another, passes signals on, and leaves nothing behind.

A generation is one life of the process group. Its ranks are started by torch's elastic agent, in a process of its own
(agent.py). All that is asked of the ranks goes by signals, all that they say by files in generations/<g>/.
"""

import contextlib
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dist_train.config.errors import ExitCode, UserError
from dist_train.config.ownership import refuse_owned
from launch import host, run_dirs, verdict
from launch.console import mark, say
from launch.inbox import Inbox
from launch.plan import LaunchPlan
from launch.processes import become_subreaper, catches, is_alive, myself, send, sweep
from launch.records import read_all, read_json, write_json
from launch.watchdog import Hang, Watchdog, culprit

HOME = Path(__file__).resolve().parents[1]
"""The folder that `launch` is imported from."""
TICK = 0.2
"""Seconds between two looks at the ranks; a signal or the agent's end wakes at once."""
AFTER_FAILURE = 3.0
"""Seconds that ranks have to end by themselves once one has failed."""
AFTER_END = 1.0
"""Seconds that other processes have to end once all ranks have."""
PATIENCE = 3
"""Generations in a row without a newer checkpoint, after which restarting is given up."""
RESTARTABLE = (ExitCode.USER_CODE, ExitCode.HANG)


def supervise(plan: LaunchPlan) -> int:
    """Runs the plan to its end, restarts included. Returns the exit code for the launcher.

    Raises:
        UserError: when the run directory belongs to a live run, or the file system does not let us work.
    """
    become_subreaper()
    if plan.node == 0:  # where rank 0 will be, whose lease it is
        refuse_owned(plan.folder.resolve())
    run_dirs.make(plan.folder)
    with owning(plan), Inbox() as inbox:
        if plan.keep_latest:
            run_dirs.point_latest(plan.folder)
        try:
            return _generations(plan, inbox)
        finally:
            sweep(patience=0)


def _generations(plan: LaunchPlan, inbox: Inbox) -> int:
    stuck, told = 0, None
    for attempt in itertools.count(1):
        before = run_dirs.newest_checkpoint(plan.folder)
        generation = Generation(plan.of_attempt(attempt), inbox)
        code = generation.run(told)
        told = generation.told
        stuck = 0 if run_dirs.newest_checkpoint(plan.folder) != before else stuck + 1
        if code not in RESTARTABLE or inbox.stop is not None or attempt > plan.max_restarts:
            return code
        if stuck == PATIENCE:
            say(f"{mark('✗', 'red')} {PATIENCE} generations in a row saved nothing new: not started again")
            return code
        say(f"{mark('!', 'yellow')} starting again, generation {attempt + 1} of at most {plan.max_restarts + 1} …")
    raise AssertionError("itertools.count ends never")


@contextlib.contextmanager
def owning(plan: LaunchPlan) -> Iterator[None]:
    """Holds the run directory for this node; the kernel lets go of it however this process ends.

    Raises:
        UserError: when another live supervisor holds it (exit code 3).
    """
    path = plan.folder / f".lock-node{plan.node or 0}"
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            if plan.node is not None:  # else several nodes of one start may share a host
                raise UserError(f"{plan.folder} belongs to a live run: {owner}", ExitCode.OWNED) from None
        except OSError:  # a file system without locks
            pass
        else:
            lock.truncate(0)
            facts = myself()
            lock.write(f"process {facts['pid']} on {facts['host']}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            lock.flush()
        yield


class Generation:
    """One life of the process group, on this node."""

    def __init__(self, plan: LaunchPlan, inbox: Inbox) -> None:
        self.plan, self.inbox = plan, inbox
        self.name = f"node{plan.node}" if plan.node is not None else str(myself()["host"])
        self.folder = self._claim()
        suffix = f"-{self.name}" if plan.node != 0 else ""
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
        self._watchdog = Watchdog(self.folder, plan.hang_timeout, plan.nodes)
        self._hang: Hang | None = None

    def _claim(self) -> Path:
        """The next generation's folder. Each node counts its own, so that nodes agree without asking each other."""
        root = self.plan.folder / "generations"
        taken = [int(path.parent.parent.name) for path in root.glob(f"*/nodes/{self.name}.json")]
        for number in itertools.count(max(taken, default=0) + 1):
            folder = root / str(number)
            for part in ("nodes", "ranks", "errors"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another that does not know its number either, on this host
                with open(folder / "nodes" / f"{self.name}.json", "x") as claim:
                    json.dump({**myself(), "command": self.plan.command}, claim)
                return folder
        raise AssertionError("itertools.count ends never")

    def run(self, told: tuple | None) -> int:
        """Starts the agent, waits for all ranks, says what went wrong. Returns the exit code so far."""
        kills = host.oom_kills()
        self.plan.logs.mkdir(parents=True, exist_ok=True)
        agent = self._start_agent()
        try:
            while agent.poll() is None:
                self._look_after(agent)
                self.inbox.wait(TICK)
        finally:
            killed = agent.poll() is None or self.inbox.kill is not None or self._out_of_time or self._hang is not None
            if agent.poll() is None:
                agent.kill()
            sweep(patience=0 if killed else AFTER_END)
            agent.wait()
            if agent.stdin:
                agent.stdin.close()
        if self.inbox.kill is not None:
            return _code_of(self.inbox.kill)
        if self._out_of_time and self.inbox.stop is not None:
            return self._stopped(self.inbox.stop)
        if self._hang is not None:
            return self._hung(self._hang)
        outcome = read_json(self.outcome) or {"error": "it died", "ranks": []}
        if outcome["error"] is None and all(rank["exit_code"] == 0 for rank in outcome["ranks"]):
            return self._ended_well()
        return self._ended_badly(outcome, told, out_of_memory=host.oom_kills() > kills)

    def _start_agent(self) -> subprocess.Popen:
        training = ("--supervised",) if self.plan.resume is not None else ()
        request = {
            "cwd": os.getcwd(),
            "arguments": [*self.plan.torchrun_arguments, *training],
            "generation": str(self.folder.absolute()),
            "logs": str(self.plan.logs.absolute()),
            "log": str(self.agent_log.absolute()),
            "tee": self.plan.tee,
            "outcome": str(self.outcome.absolute()),
        }
        agent = subprocess.Popen(
            [sys.executable, "-m", "launch.agent"],
            stdin=subprocess.PIPE,
            cwd=HOME,  # so that no folder called launch in the user's own hides this one
            env={**os.environ, **self.plan.environment},
            start_new_session=True,  # so that Ctrl-C reaches the supervisor alone
        )
        assert agent.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            agent.stdin.write(json.dumps(request).encode() + b"\n")
            agent.stdin.flush()
        return agent

    # ------------------------------------------------------------ while it runs

    def _look_after(self, agent: subprocess.Popen) -> None:
        if self.inbox.kill is not None or self._is_over() or self._hang is not None:
            agent.kill()
            return
        sessions = [session for session in read_all(self.folder / "ranks") if session["agent"] == agent.pid]
        alive = [session for session in sessions if is_alive(session)]
        if self.inbox.stop is not None:
            self._pass_on_stop(self.inbox.stop, sessions, alive)
        for number in self.inbox.take_others():
            self._ask(alive, number, again=True)
        self._end_stragglers(sessions, alive)
        if self._failing_since is None:
            self._hang = self._watchdog.look(alive, [session for session in sessions if session.get("ended") == 0])

    def _is_over(self) -> bool:
        """Whether a stop was asked for so long ago that the last checkpoint has to do."""
        if self.inbox.stop is None or self.plan.grace is None:
            return False
        if self._deadline is None:
            self._deadline = time.monotonic() + self.plan.grace
        if time.monotonic() < self._deadline:
            return False
        if not self._out_of_time:
            newest = run_dirs.newest_checkpoint(self.plan.folder)
            left = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
            say(f"{mark('!', 'yellow')} not stopped within {self.plan.grace:g} s (--grace): ended unsaved; {left}")
        self._out_of_time = True
        return True

    def _pass_on_stop(self, number: int, sessions: list[dict], alive: list[dict]) -> None:
        if self._ask(alive, number) or self._asked:
            if not self._announced:
                say("  saving, then stopping … once more to kill at once")
            self._announced = True
        elif alive or not sessions:  # no rank has got as far as training: there is nothing to save
            self.inbox.kill = number

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
        state = read_json(self.plan.folder / "state.json") or {}
        by_name = getattr(signal, str(state.get("signal")), None)
        number = self.inbox.stop or by_name
        if number is None or state.get("status") == "done":
            return ExitCode.DONE
        return self._stopped(number)

    def _stopped(self, number: int) -> int:
        if number == signal.SIGUSR1 or (number == signal.SIGTERM and self.plan.scheduler):
            return ExitCode.REQUEUE
        return _code_of(number)

    def _ended_badly(self, outcome: dict, told: tuple | None, *, out_of_memory: bool) -> int:
        found = self._failures(outcome)
        cause = verdict.first_cause(found)
        if self.plan.nodes > 1 and (cause is None or cause.kind == "peer"):
            time.sleep(AFTER_END)  # the node that it began on may still be writing down why
            found = self._failures(outcome)
            cause = verdict.first_cause(found)
        if cause is None:
            code, text = ExitCode.USER_CODE, self._agent_failed(outcome)
        else:
            scene = verdict.Scene(
                logs=self.plan.logs,
                checkpoint=run_dirs.newest_checkpoint(self.plan.folder),
                out_of_memory=out_of_memory,
                here=str(myself()["host"]),
            )
            code = verdict.exit_code(cause, out_of_memory=out_of_memory)
            text = verdict.explain(cause, found, scene)
        self.told = (cause.rank, cause.kind, cause.exit_code, (cause.report or {}).get("message")) if cause else None
        same = self.told is not None and self.told == told
        say(f"{mark('✗', 'red')} rank {cause.rank} failed the same way again" if cause and same else text)
        write_json(
            self.outcome.with_name(self.outcome.name.replace("agent", "verdict")), verdict.as_record(cause, found, code)
        )
        return code

    def _hung(self, hang: Hang) -> int:
        finding = culprit.find(hang.evidence)
        say(culprit.explain(hang, finding))
        write_json(self.verdict, culprit.as_record(hang, finding, ExitCode.HANG))
        return ExitCode.HANG

    def _failures(self, outcome: dict) -> list[verdict.Failure]:
        sessions, reports = read_all(self.folder / "ranks"), read_all(self.folder / "errors")
        return verdict.failures(sessions, reports, outcome["ranks"], self._ended_by_us)

    def _agent_failed(self, outcome: dict) -> str:
        why = outcome["error"] or "no rank said why"
        return f"{mark('✗', 'red')} torch's elastic agent failed: {why}\n  its log: {self.agent_log}"


def _code_of(number: int) -> int:
    """128 + signal, as a shell has it: a forced end saved nothing, so it is never 75."""
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
