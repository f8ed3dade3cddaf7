"""Which rank is the odd one, and how that is told."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dist_train.rundir.records import Frame
from launch.console import mark, ranges
from launch.diagnosis.collectives import first_difference, odd_one
from launch.diagnosis.evidence import Evidence, Process
from launch.diagnosis.formatting import frame_at, short
from launch.diagnosis.watchdog import Hang

_OF_SOME = re.compile(r"[0-9a-f]{32,}")
"""Torch's names of groups that only their members know of; the others' are numbers."""
_STATES = {"T": "stopped by a signal (state T)", "t": "stopped by a debugger (state t)", "D": "state D: in the kernel"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Which ranks are odd, and why."""

    ranks: tuple[int, ...]
    """Empty where all wait alike."""
    why: str
    place: Frame | None


def find(evidence: list[Evidence]) -> Finding:
    """Ranks that are stopped, before those that wait for no other, before those that wait in another collective."""
    for test in (_stopped, _ended, _silent, _elsewhere, _behind, _in_another_call, _in_another):
        finding = test(evidence)
        if finding is not None:
            return finding
    return Finding(ranks=(), why="no odd rank: all wait " + _where(evidence[0].process), place=None)


def _stopped(evidence: list[Evidence]) -> Finding | None:
    for one in evidence:
        for process in ([one.process] if one.process else []) + one.children:
            if process.state in "Tt":
                whose = "" if process is one.process else f"its child process {process.pid} is "
                return Finding(ranks=(one.rank,), why=whose + _STATES[process.state], place=None)
    return None


def _ended(evidence: list[Evidence]) -> Finding | None:
    ended = tuple(one.rank for one in evidence if one.process is None)
    return Finding(ranks=ended, why="it has left with exit code 0", place=None) if ended else None


def _silent(evidence: list[Evidence]) -> Finding | None:
    silent = [one for one in evidence if one.process and not one.process.frames]
    if not silent or len(silent) == len(evidence):
        return None
    process = silent[0].process
    assert process is not None
    state = _STATES.get(process.state, f"state {process.state}")
    why = f"it does not answer ({state}{', ' + process.syscall if process.syscall else ''})"
    return Finding(ranks=tuple(one.rank for one in silent), why=why, place=None)


def _elsewhere(evidence: list[Evidence]) -> Finding | None:
    """Not in a collective while others are, or none is; of several, those that are the least far."""
    out = [one for one in evidence if one.process and one.process.waits != "collective"]
    if not out or (len(out) == len(evidence) and len(out) > 1 and len({_far(one) for one in out}) == 1):
        return None
    least = min(_far(one) for one in out)
    odd = [one for one in out if _far(one) == least]
    process = odd[0].process
    assert process is not None
    if process.waits != "loader":
        return Finding(ranks=tuple(one.rank for one in odd), why=_at(process), place=process.place)
    stuck = next((child for child in odd[0].children if child.own is not None), None)
    if stuck is None:
        return Finding(ranks=tuple(one.rank for one in odd), why="waits for its loader: " + _at(process), place=None)
    why = f"its loader process {stuck.pid} is at {_at(stuck)}"
    return Finding(ranks=tuple(one.rank for one in odd), why=why, place=stuck.place)


def _far(one: Evidence) -> tuple[int, int]:
    return (one.heartbeat.step, one.heartbeat.total)


def _behind(evidence: list[Evidence]) -> Finding | None:
    """In a process group, some have begun fewer collectives; only where nobody is behind in another group instead."""
    lagging: dict[str, set[int]] = {}
    for name in {name for one in evidence for name in one.heartbeat.groups}:
        counts = {
            one.rank: one.heartbeat.groups.get(name, 0)
            for one in evidence
            if name in one.heartbeat.groups or not _OF_SOME.fullmatch(name)
        }
        most = max(counts.values())
        late = {rank for rank, count in counts.items() if count < most}
        if late:
            lagging[name] = late
    if not lagging or len({frozenset(late) for late in lagging.values()}) > 1:
        return None
    name, late = next(iter(lagging.items()))
    odd = [one for one in evidence if one.rank in late]
    most = max(one.heartbeat.groups.get(name, 0) for one in evidence)  # of those who are in it
    assert odd[0].process is not None
    count = odd[0].heartbeat.groups.get(name, 0)
    why = f"{_at(odd[0].process)}: it has begun {count:,} collectives, the others {most:,}"
    return Finding(ranks=tuple(sorted(late)), why=why, place=odd[0].process.place)


def _in_another_call(evidence: list[Evidence]) -> Finding | None:
    """It has called another collective than the others, or the same with another shape."""
    differing = first_difference({one.rank: one.calls for one in evidence})
    if differing is None or (odd := odd_one(differing)) is None:
        return None
    rank, usual = odd
    call = differing[rank]
    place = frame_at(call.file, call.line, call.function)
    text = f"   {place.text}" if place.text else ""
    why = f"{short(call.file)}:{call.line} {call.function}(){text}: it called {call.what}, the others {usual}"
    return Finding(ranks=(rank,), why=why, place=place)


def _in_another(evidence: list[Evidence]) -> Finding | None:
    """In another operation than most; with as many here as there, both are named."""
    spots = {one.rank: _spot(one.process) for one in evidence}
    counted = Counter(spots.values()).most_common()
    if len(counted) < 2:
        return None
    if counted[0][1] == counted[1][1]:
        first = {spot: next(one for one in evidence if spots[one.rank] == spot) for spot, _ in counted}
        told = [f"rank {one.rank} waits {_where(one.process)}" for one in first.values()]
        return Finding(ranks=tuple(one.rank for one in first.values()), why="; ".join(told), place=None)
    odd = [one for one in evidence if spots[one.rank] != counted[0][0]]
    process = odd[0].process
    assert process is not None
    why = f"{_at(process)}: waits in {process.operation}, another operation than the others"
    return Finding(ranks=tuple(one.rank for one in odd), why=why, place=process.place)


def _spot(process: Process | None) -> tuple[str, str, int]:
    place = process.place if process else None
    return (process.operation if process else "", place.file if place else "", place.line if place else 0)


def _at(process: Process) -> str:
    place = process.place
    if place is None:
        return f"no place known (state {process.state})"
    text = f"   {place.text}" if place.text else ""
    return f"{short(place.file)}:{place.line} {place.function}(){text}"


def _where(process: Process | None) -> str:
    if process is None:
        return "nowhere"
    return f"in {process.operation} at {_at(process)}" if process.waits == "collective" else f"at {_at(process)}"


# ---------------------------------------------------------------- telling it


def explain(hang: Hang, finding: Finding) -> str:
    usual = f" (usual: {_seconds(hang.usual)})" if hang.usual else ""
    what = "finished a step" if hang.usual is not None else "gone forward"
    lines = [f"{mark('!', 'yellow')} no rank has {what} for {_seconds(hang.seconds)}{usual}. Stacks: {hang.stacks}/"]
    if not finding.ranks:
        return "\n".join([*lines, f"  {finding.why}"])
    if "; rank " in finding.why:
        return "\n".join([*lines, f"  the ranks wait in different operations: {finding.why}"])
    several = len(finding.ranks) > 1
    odd = (
        f"ranks {ranges(list(finding.ranks))} are the odd ones"
        if several
        else f"rank {finding.ranks[0]} is the odd one"
    )
    lines.append(f"  {odd}: {finding.why}")
    others: dict[str, list[int]] = {}
    for one in hang.evidence:
        if one.rank not in finding.ranks:
            others.setdefault(_where(one.process), []).append(one.rank)
    for where, ranks in others.items():
        lines.append(f"  rank{'s' * (len(ranks) > 1)} {ranges(ranks)} wait{'s' * (len(ranks) == 1)} {where}")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    value = value or 0.0
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def as_record(hang: Hang, finding: Finding, code: int) -> dict[str, Any]:
    """For generations/<g>/verdict.json."""
    place = finding.place
    return {
        "exit_code": int(code),
        "cause": {
            "kind": "hang",
            "rank": finding.ranks[0] if len(finding.ranks) == 1 else None,
            "ranks": list(finding.ranks),
            "why": finding.why,
            "file": place.file if place else None,
            "line": place.line if place else None,
            "seconds": round(hang.seconds, 3),
            "stacks": str(hang.stacks),
        },
        "failures": [],
        "ranks": [
            {
                "rank": one.rank,
                "state": one.process.state if one.process else None,
                "phase": one.heartbeat.phase,
                "step": one.heartbeat.step,
                "collectives": one.heartbeat.groups,
                "waits": one.process.waits if one.process else None,
            }
            for one in hang.evidence
        ],
    }
