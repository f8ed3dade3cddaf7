"""What the launchers of several nodes agree on, by files in the run directory; without a scheduler, which would do it.

A launcher that is ready for a generation says so in RUN/.nodes/NAME.json, with a number that it raises each time. When
all are ready, the first of them publishes a round: the generation's name, count, port and id. Each claims its place in
that generation's folder, and starts its ranks once all have. Whoever does not is not there any more, whatever its file
says. So nobody compares clocks, and nothing has to be written while a generation runs.

A launcher has left a round when its process is gone or another has taken its name, or when it is ready for the next.
While a node's ranks are quiet (diagnosis/nodes.py), the other launchers rewrite their files. One that does not is out
of reach.
Where the run directory is not shared, no other launcher is ever seen, and each counts its generations by itself.
"""

import os
import secrets
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from dist_train.errors import ExitCode, UserError
from dist_train.rundir.codec import read_record, write_json, write_new
from dist_train.rundir.layout import GenerationDir, RunDir
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.records import NodeTurn, Round
from dist_train.rundir.runs import newest_checkpoint

from ..console import mark, say
from ..plan import LaunchPlan
from ..plan.rendezvous import JOIN_TIMEOUT_S
from ..signals import ReceivedSignals
from .other_nodes import Agreed, NoOtherNodes
from .stopping import longest_end

UNSEEN_S = 3.0
"""Seconds without any other launcher's file after which a node goes on by itself. One that comes later is joined."""
LOOK_S, LOOK_MEANWHILE_S = 0.1, 1.0
"""Seconds between two looks: when there is nothing else to do, and while ranks run."""
TELL_S = 3.0
"""Seconds before the user is told of a wait."""
PLACES_S = 30.0
"""Seconds to claim a place in a generation."""
WORD_S = 10.0
"""Seconds for the other nodes to say why their ranks have ended."""
SILENT_LOOKS = 30
"""Looks, one a second, after which a launcher that does not write its file anew is out of reach."""
PORTS = 32
"""How many, from the one that is due, are looked at for a free one."""
SILENT = (ExitCode.DONE, ExitCode.CONFIG)
"""Exit codes after which a launcher leaves no word: it has done its part, or promises to have written nothing."""


class OtherNodes(NoOtherNodes):
    """The nodes of this start, and this one among them."""

    def __init__(self, plan: LaunchPlan, signals: ReceivedSignals) -> None:
        super().__init__(plan)
        self._run, self._signals, self._patience_s = RunDir(plan.folder), signals, plan.rendezvous.join_timeout_s
        self._me = self._first_turn()
        self.plan = replace(plan, node_name=self._me.name)
        self._is_ready = False
        """This node has said that it is ready, and is in no round yet."""
        self._round: Round | None = None
        """The round that we are in."""
        self._is_shared = False
        """Whether the nodes share the run directory: there has been a round."""
        self._gone: set[tuple[object, ...]] = set()
        """Launchers, each with its turn, that did not come."""
        self._generation: GenerationDir | None = None
        self._heard: dict[str, tuple[int, int]] = {}
        """For each other launcher, the time of its file, and how many looks have found the same."""
        self._next_look = self._began = 0.0
        self._has_left = self._stays_away = False

    # ---------------------------------------------------------------- before a generation

    def next_plan(self) -> LaunchPlan | None:
        self._has_left = self.is_void = False
        if not self._is_ready:
            self._get_ready(self.code)
        elif self._me.restarts != self.restarts:
            self._me = replace(self._me, restarts=self.restarts)
            self._write_down()
        began, told = time.monotonic(), False
        while self._signals.stop is None:
            waited, others = time.monotonic() - began, self._others()
            if (agreed := self._open_round()) is not None:
                return self._enter(agreed)
            if self._stays_away or waited > self._patience_s:
                raise UserError(self._stayed_away(others), ExitCode.REQUEUE)
            if not others and not self._is_shared and (waited > UNSEEN_S or self._me.attempt > 0):
                return self._by_itself()
            if self._publish(others):
                continue
            if waited > TELL_S and not told:
                told = True
                what = f"waiting for {self._missing(others)} to start, up to {_time(self._patience_s)}"
                say(f"{mark('!', 'yellow')} {what}; start the same command there")
            self._signals.wait(LOOK_S if waited < TELL_S else LOOK_MEANWHILE_S)
        return None

    def _first_turn(self) -> NodeTurn:
        """This node's first entry. Without a number it has its host's name, with `-2`, `-3` … if that name is taken."""
        mine, number = NodeTurn(**asdict(ProcessId.myself()), name=self.plan.node_name), 1
        with suppress(OSError):
            self._run.nodes.mkdir(exist_ok=True)
            while self.plan.node is None:
                mine = replace(mine, name=f"{self.plan.node_name}-{number}" if number > 1 else self.plan.node_name)
                with suppress(FileExistsError):
                    write_new(self._run.node(mine.name), asdict(mine))
                    break
                was = read_record(NodeTurn, self._run.node(mine.name))
                if was is not None and was.may_live:
                    number += 1
                else:
                    self._run.node(mine.name).unlink(missing_ok=True)
        return mine

    def _get_ready(self, code: int | None) -> None:
        self._me = replace(self._me, turn=self._me.turn + 1, alone=False, restarts=self.restarts, code=code)
        self._is_ready = True
        self._write_down()

    def _write_down(self) -> None:
        with suppress(OSError):  # the disk refuses: the others wait, and the next look tries again
            self._run.nodes.mkdir(exist_ok=True)
            write_json(self._run.node(self._me.name), self._me)

    def _others(self) -> list[NodeTurn]:
        """The other nodes that have a file: all of them if nodes have numbers, else those that may live."""
        names = _names(self._run.nodes)
        if self._me.name not in names:
            self._write_down()
        if self.plan.node is not None:
            names &= {f"node{node}" for node in range(self.plan.nodes)}
        found = (read_record(NodeTurn, self._run.node(name)) for name in names - {self._me.name})
        return [one for one in found if one is not None and (self.plan.node is not None or one.may_live)]

    def _published(self) -> Round | None:
        """The last round.

        Raises:
            UserError: when another version of ours has written it.
        """
        found = read_record(Round, self._run.round)
        if found is not None and found.version != Round.version:
            raise UserError(f"{self._run.round} is of another version of dist-train: start the same one on all nodes")
        return found

    def _open_round(self) -> Round | None:
        """The round that waits for us."""
        found = self._published() if self._is_ready else None
        return found if found is not None and self._me.key in (one.key for one in found.members) else None

    def _ready(self, others: Collection[NodeTurn]) -> list[NodeTurn]:
        """This node and the others that are ready, the first one in front."""
        last = self._published()
        used = self._gone | {one.key for one in (last.members if last else [])}
        ready = [one for one in others if one.may_live and not one.alone and one.key not in used]
        return sorted([self._me, *ready], key=lambda one: (len(one.name), one.name))

    def _publish(self, others: Collection[NodeTurn]) -> bool:
        """Publishes the next round if all nodes are ready and this is the first of them. Returns whether it did."""
        ready = self._ready(others)[: self.plan.nodes]
        if len(ready) < self.plan.nodes or ready[0] is not self._me:
            return False
        attempt, name = 1 + max(one.attempt for one in ready), secrets.token_hex(4)
        due = self.plan.rendezvous.of_attempt(attempt).master_port
        agreed = Round(
            start=name,
            attempt=attempt,
            restarts=max(one.restarts for one in ready),
            master_port=_free_port(due) if due is not None else None,
            rdzv_id=f"{self.plan.rendezvous.rdzv_id or 'none'}-{attempt}-{name}",
            members=ready,
        )
        with suppress(OSError):  # the disk refuses: again at the next look
            write_json(self._run.round, agreed)
            return True
        return False

    def _enter(self, agreed: Round) -> LaunchPlan:
        self._round, self._is_ready, self._is_shared, self.restarts = agreed, False, True, agreed.restarts
        self._me, self.code = replace(self._me, attempt=agreed.attempt), None
        self._began = time.monotonic()
        return self.plan.of_round(agreed)

    def _by_itself(self) -> LaunchPlan:
        self._round, self._is_ready = None, False
        self._me = replace(self._me, attempt=self._me.attempt + 1, alone=True)
        self._write_down()
        self._began = time.monotonic()
        return self.plan.of_attempt(self._me.attempt)

    def all_came(self, generation: GenerationDir) -> bool:
        self._generation, self._heard = generation, {}
        deadline = time.monotonic() + PLACES_S
        while self._round is not None and self._signals.stop is None:
            there = _names(generation.nodes)
            missing = [one for one in self._round.members if one.name not in there]
            if not missing:
                return True
            if time.monotonic() > deadline or any(map(self._has_moved_on, missing)):
                self._gone |= {one.key for one in missing}
                return False
            self._signals.wait(LOOK_S)
        return True

    # ---------------------------------------------------------------- in a generation

    def have_left(self, begun: bool) -> bool:
        now = time.monotonic()
        if self._has_left or now < self._next_look:
            return self._has_left
        self._next_look = now + LOOK_MEANWHILE_S
        # Once all nodes are there, the time is not for them to come but for their ranks to start.
        most = self._patience_s if self._round is None else max(self._patience_s, JOIN_TIMEOUT_S)
        nobody_came = not begun and now - self._began > most
        if self._round is None:
            self._stays_away = nobody_came
            self.is_void = nobody_came or (not begun and bool(self._others()))
            self._has_left = self.is_void
        else:  # the first node watches all, the others watch the first
            first = self._round.members[0]
            watched = self._peers if first.name == self._me.name else [first]
            self._has_left = nobody_came or any(map(self._has_moved_on, watched)) or self._is_one_silent()
        return self._has_left

    def _is_one_silent(self) -> bool:
        """Whether another launcher has not answered for long, while this node's ranks are quiet. Looks are counted and
        not seconds: we may have been stopped ourselves."""
        quiet = _names(self._generation.quiet) if self._generation is not None else set()
        if quiet - {self._me.name}:
            self._write_down()
        if self._me.name not in quiet:
            self._heard = {}
            return False
        for one in self._peers:
            with suppress(OSError):  # it has ended well
                stamp = os.stat(self._run.node(one.name)).st_mtime_ns
                before, looks = self._heard.get(one.name, (stamp, 0))
                self._heard[one.name] = (stamp, looks + 1 if stamp == before else 0)
        return any(looks > SILENT_LOOKS for _, looks in self._heard.values())

    @property
    def _peers(self) -> list[NodeTurn]:
        return [one for one in self._round.members if one.name != self._me.name] if self._round else []

    def _now(self, one: NodeTurn) -> NodeTurn | None:
        """What a node's file says now; None where the node has ended well."""
        return read_record(NodeTurn, self._run.node(one.name))

    def _has_moved_on(self, one: NodeTurn) -> bool:
        now = self._now(one)
        return now is not None and (now.key != one.key or not now.may_live)

    def agree(self, code: int) -> Agreed:
        if self._round is None:
            return Agreed(code=code)
        self._get_ready(None)
        deadline, is_over = time.monotonic() + WORD_S + longest_end(self.plan), False
        while True:
            lost, silent = [], 0
            for one in self._peers:
                if (now := self._now(one)) is None:  # it has ended well
                    continue
                code_there = now.code if now.ended is None else now.ended
                if now.process != one.process or (now.ended is None and now.lives() is False):
                    lost.append(one.name)
                elif now.ended is None and now.turn == one.turn:  # no word yet
                    silent += 1
                    lost += [one.name] * is_over
                elif code_there is not None:
                    return Agreed(code=code_there)
            if lost or not silent or is_over or self._signals.stop is not None:
                return Agreed(code=ExitCode.REQUEUE if lost else code, lost=tuple(lost))
            is_over = time.monotonic() > deadline
            self._signals.wait(LOOK_S)

    # ---------------------------------------------------------------- the end

    def leave(self, code: int) -> None:
        with suppress(OSError):
            if code in SILENT:
                self._run.node(self._me.name).unlink(missing_ok=True)
            else:
                self._me = replace(self._me, ended=code)
                self._write_down()
            if not _names(self._run.nodes):
                self._run.round.unlink(missing_ok=True)
                self._run.nodes.rmdir()

    def _missing(self, others: Collection[NodeTurn]) -> str:
        """The nodes that are not ready, in words."""
        nodes, there = self.plan.nodes, {one.name for one in self._ready(others)}
        if self.plan.node is None:
            return f"{nodes - len(there)} of {nodes} nodes"
        away = [str(node) for node in range(nodes) if f"node{node}" not in there]
        return f"node{'s' * (len(away) > 1)} {', '.join(away)} of {nodes}"

    def _stayed_away(self, others: Collection[NodeTurn]) -> str:
        newest = newest_checkpoint(self.plan.folder)
        kept = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        return (
            f"waited {_time(self._patience_s)} for {self._missing(others)} (--rdzv-conf join_timeout=SECONDS): "
            f"{kept}. Start the same command on all nodes to go on"
        )


def _names(folder: Path) -> set[str]:
    """The names of the nodes that have a file in a folder; empty where the disk does not tell."""
    with suppress(OSError):
        return {path.stem for path in map(Path, os.listdir(folder)) if path.suffix == ".json" and path.stem[0] != "."}
    return set()


def _time(seconds: float) -> str:
    return f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:g} s"


def _free_port(due: int) -> int:
    """The first port from `due` on that nobody listens on here."""
    for port in range(due, min(due + PORTS, 2**16)):
        with suppress(OSError), socket.create_server(("", port)):
            return port
    return due
