"""Which rank is the odd one, and how that is told."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dist_train.rundir.records import Frame

from ..console import mark
from .collectives import first_difference, odd_one, sides
from .evidence import Evidence, Process
from .formatting import frame_at, named, short
from .watchdog import Hang

_OF_SOME = re.compile(r"[0-9a-f]{32,}")
"""Torch's names of groups that only their members know of; the others' are numbers."""
_STATES = {"T": "stopped by a signal (state T)", "t": "stopped by a debugger (state t)", "D": "state D: in the kernel"}


@dataclass(frozen=True, kw_only=True)
class OddRanks:
    """Which ranks are odd, and why."""

    ranks: tuple[int, ...]
    """Empty where all wait alike."""
    why: str
    place: Frame | None


def find(evidence: list[Evidence]) -> OddRanks:
    """Ranks that are stopped, before those that wait for no other, before those that wait in another collective."""
    for test in (_stopped, _ended, _silent, _elsewhere, _in_another_call, _behind, _in_another, _loaders):
        if (finding := test(evidence)) is not None:
            return finding
    return _odd([], "no odd rank: all wait " + _where(evidence[0].process))


def _odd(ranks: list[Evidence], why: str, place: Frame | None = None) -> OddRanks:
    return OddRanks(ranks=tuple(sorted(one.rank for one in ranks)), why=why, place=place)


def _stopped(evidence: list[Evidence]) -> OddRanks | None:
    for one in evidence:
        for process in filter(None, [one.process, *one.children]):
            if process.state in "Tt":
                whose = "" if process is one.process else f"its child process {process.pid} is "
                return _odd([one], whose + _STATES[process.state])
    return None


def _ended(evidence: list[Evidence]) -> OddRanks | None:
    """The tests that follow find that all ranks run."""
    ended = [one for one in evidence if one.process is None]
    return _odd(ended, "it has left with exit code 0") if ended else None


def _silent(evidence: list[Evidence]) -> OddRanks | None:
    silent = [one for one in evidence if not one.running.frames]
    if not 0 < len(silent) < len(evidence):
        return None
    process = silent[0].running
    state = _STATES.get(process.state, f"state {process.state}")
    return _odd(silent, f"it does not answer ({state}{', ' + process.syscall if process.syscall else ''})")


def _elsewhere(evidence: list[Evidence]) -> OddRanks | None:
    """Not in a collective while others are, or none is; of several, those that are the least far."""
    out = [one for one in evidence if one.running.waits != "collective"]
    if not out or (len(out) == len(evidence) > 1 and len(set(map(_far, out))) == 1):
        return None
    least = min(map(_far, out))
    odd = [one for one in out if _far(one) == least]
    process = odd[0].running
    if process.waits != "loader":
        return _odd(odd, _at(process), process.place)
    what, stuck = _loads(odd[0])
    if stuck is None:
        return _odd(odd, "waits for its loader: " + _at(process))
    return _odd(odd, f"its {what} is at {_at(stuck)}", stuck.place)


def _loads(one: Evidence) -> tuple[str, Process | None]:
    """What loads for a rank, in words, and where it is: in the user's code rather than elsewhere."""
    threads = [child for child in one.children if child.pid == one.running.pid]
    in_own_code = (child for child in one.children if child.own is not None)
    stuck = next(in_own_code, threads[0] if threads else None)
    is_thread = stuck is not None and stuck.pid == one.running.pid
    return "loading thread" if is_thread else f"loader process {stuck.pid if stuck else 0}", stuck


def _loaders(evidence: list[Evidence]) -> OddRanks | None:
    """All wait for what loads their samples. One of those that wait for no file lock, or at another line than most, is
    the odd one; else each is told."""
    loads = {one.rank: _loads(one) for one in evidence if one.running.waits == "loader"}
    stuck = {rank: process for rank, (_, process) in loads.items() if process is not None}
    if len(stuck) < len(evidence):
        return None
    odd = [one for one in evidence if "locks_lock" not in stuck[one.rank].syscall]
    if len(odd) == len(evidence):
        usual, count = Counter(process.place for process in stuck.values()).most_common(1)[0]
        odd = [one for one in evidence if stuck[one.rank].place != usual and 2 * count > len(evidence)]
    told = [f"{loads[one.rank][0]} is at {_at(stuck[one.rank])}" for one in odd or evidence]
    place = stuck[(odd or evidence)[0].rank].place
    if odd:
        return _odd(odd, f"its {told[0]}", place)
    each = "; ".join(f"rank {one.rank}'s {what}" for one, what in zip(evidence, told, strict=True))
    return _odd([], f"no odd rank: all wait for their loaders: {each}", place)


def _far(one: Evidence) -> tuple[int, int]:
    return (one.heartbeat.step, one.heartbeat.total)


def _behind(evidence: list[Evidence]) -> OddRanks | None:
    """In a process group, some have begun fewer collectives; only where nobody is behind in another group instead."""
    lagging: dict[str, set[int]] = {}
    for name in {name for one in evidence for name in one.heartbeat.groups}:
        counts = {
            one.rank: one.heartbeat.groups.get(name, 0)
            for one in evidence
            if name in one.heartbeat.groups or not _OF_SOME.fullmatch(name)
        }
        if late := {rank for rank, count in counts.items() if count < max(counts.values())}:
            lagging[name] = late
    if len({frozenset(late) for late in lagging.values()}) != 1:
        return None
    name, late = next(iter(lagging.items()))
    odd = [one for one in evidence if one.rank in late]
    most = max(one.heartbeat.groups.get(name, 0) for one in evidence)  # of those who are in it
    process, begun = odd[0].running, odd[0].heartbeat.groups.get(name, 0)
    return _odd(odd, f"{_at(process)}: it has begun {begun:,} collectives, the others {most:,}", process.place)


def _in_another_call(evidence: list[Evidence]) -> OddRanks | None:
    """It has called another collective than the others, or the same with another shape."""
    differing = first_difference({one.rank: one.calls for one in evidence})
    if differing is None:
        return None
    odd = odd_one(differing)
    if odd is None:
        calls = [(ranks, call, frame_at(call.file, call.line, call.function)) for ranks, call in sides(differing)]
        told = (f"\n    {named(ranks)} called {call.what} at {_line(place)}" for ranks, call, place in calls)
        return _odd([], f"collective {calls[0][1].number} does not fit:{''.join(told)}")
    rank, usual = odd
    call = differing[rank]
    place = frame_at(call.file, call.line, call.function)
    return OddRanks(ranks=(rank,), why=f"{_line(place)}: it called {call.what}, the others {usual}", place=place)


def _in_another(evidence: list[Evidence]) -> OddRanks | None:
    """In another operation than most; with as many here as there, both are named."""
    spots = {one.rank: (one.running.operation, one.running.place) for one in evidence}
    counted = Counter(spots.values()).most_common()
    if len(counted) < 2:
        return None
    if counted[0][1] == counted[1][1]:
        first = [next(one for one in evidence if spots[one.rank] == spot) for spot, _ in counted]
        return _odd(first, "; ".join(f"rank {one.rank} waits {_where(one.process)}" for one in first))
    odd = [one for one in evidence if spots[one.rank] != counted[0][0]]
    process = odd[0].running
    return _odd(odd, f"{_at(process)}: waits in {process.operation}, another operation than the others", process.place)


def _line(place: Frame) -> str:
    text = f"   {place.text}" if place.text else ""
    return f"{short(place.file)}:{place.line} {place.function}(){text}"


def _at(process: Process) -> str:
    return _line(process.place) if process.place else f"no place known (state {process.state})"


def _waits(one: Evidence) -> str:
    what, stuck = _loads(one) if one.process is not None and one.process.waits == "loader" else ("", None)
    return _where(one.process) if stuck is None else f"for its {what}, which is at {_at(stuck)}"


def _where(process: Process | None) -> str:
    if process is None:
        return "nowhere"
    return f"in {process.operation} at {_at(process)}" if process.waits == "collective" else f"at {_at(process)}"


# ---------------------------------------------------------------- telling it


def explain_hang(hang: Hang, finding: OddRanks) -> str:
    usual = f" (usual: {_seconds(hang.usual)})" if hang.usual else ""
    what = "finished a step" if hang.usual is not None else "gone forward"
    lines = [f"{mark('!', 'yellow')} no rank has {what} for {_seconds(hang.seconds)}{usual}. Stacks: {hang.stacks}/"]
    if not finding.ranks:
        return "\n".join([*lines, f"  {finding.why}"])
    if "; rank " in finding.why:
        return "\n".join([*lines, f"  the ranks wait in different operations: {finding.why}"])
    odd = list(finding.ranks)
    is_odd = "is the odd one" if len(odd) == 1 else "are the odd ones"
    lines.append(f"  {named(odd)} {is_odd}: {finding.why}")
    others: dict[str, list[int]] = {}
    for one in hang.evidence:
        if one.rank not in odd:
            others.setdefault(_waits(one), []).append(one.rank)
    for where, ranks in others.items():
        lines.append(f"  {named(ranks)} wait{'s' * (len(ranks) == 1)} {where}")
    return "\n".join(lines)


def end_in_words(hang: Hang, finding: OddRanks, code: int) -> str:
    """The last line of a run that was ended for it."""
    place, ranks = finding.place, list(finding.ranks)
    at = f" at {short(place.file)}:{place.line}" if place else ""
    who = named(ranks) + at if ranks else f"no odd rank{at and ', the first is'}{at}"
    what = f"{mark('✗', 'red')} ended after {_seconds(hang.seconds)} without progress"
    return f"{what}: {who} (exit code {int(code)}). Stacks: {hang.stacks}/"


def quiet_in_words(hang: Hang, node: int | None) -> str:
    """What is told while the run is let go on; nodes but the first say one line."""
    text = explain_hang(hang, find(hang.evidence))
    if node not in (0, None):
        return text.split("\n")[0]
    if hang.ends_after is None:
        return f"{text}\n  it is not ended, for a long wait may be meant; --hang-timeout SECONDS ends it"
    after = _seconds(hang.ends_after)
    return f"{text}\n  it is ended after {after} without a sign of going forward (--hang-timeout)"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def hang_record(hang: Hang, finding: OddRanks, code: int) -> dict[str, Any]:
    """For generations/<g>/verdict.json."""
    place, odd = finding.place, list(finding.ranks)
    cause = {
        "kind": "hang",
        "rank": odd[0] if len(odd) == 1 else None,
        "ranks": odd,
        "why": finding.why,
        "file": place and place.file,
        "line": place and place.line,
        "seconds": round(hang.seconds, 3),
        "stacks": str(hang.stacks),
    }
    ranks = [
        {
            "rank": one.rank,
            "state": one.process and one.process.state,
            "phase": one.heartbeat.phase,
            "step": one.heartbeat.step,
            "collectives": one.heartbeat.groups,
            "waits": one.process and one.process.waits,
        }
        for one in hang.evidence
    ]
    return {"exit_code": int(code), "cause": cause, "failures": [], "ranks": ranks}
