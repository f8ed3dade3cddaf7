"""SIGKILL at every system call of a save.

The kernel ends the process in place of the call (`strace -e inject=CALL:signal=SIGKILL:when=N`), for every call that a
save makes, reading ones too: between two neighbours of this list there is no other state that a killed save could
leave. Two saves are taken apart: of a new step, with retention, and of a step whose checkpoint is there and damaged.
"""

import shutil
import signal
from pathlib import Path

from dist_train.checkpoint.manifest import DamagedCheckpoint, verify
from dist_train.checkpoint.store import CheckpointStore
from dist_train.errors import UserError
from tests.faults.one_save import KEEP
from tests.faults.tally import Order, Tally
from tests.faults.traced import OLD_STEPS, STEP, STRACE, Bench, Call, bench, sample_files


def campaign(order: Order) -> Tally:
    """All points, whatever `order.count` says."""
    assert STRACE is not None, "strace is missing: apt-get install strace"
    tally = Tally(campaign="syscalls", seed=order.seed)
    number = 0
    with bench(order.folder, sample_files(order.dice("files").randbytes(5000))) as table:
        for kind in ("new", "damaged"):
            log = order.folder / f"{kind}.strace"
            calls = table.calls(_prepared(table, kind), log)
            for call in calls[:-1]:
                if order.wants(number) and (call.changes or not order.quick):
                    tally.injections += 1
                    _kill_at(table, kind, call, tally, number)
                number += 1
            tally.facts[f"calls of a save ({kind})"] = len(calls) - 1
    return tally


def _prepared(table: Bench, kind: str) -> Path:
    run_dir = table.copy()
    if kind == "damaged":
        store = CheckpointStore(run_dir / "checkpoints", KEEP)
        path = store.save(STEP, table.files, {})
        (path / "state.json").write_bytes(b"[]")
    return run_dir


def _kill_at(table: Bench, kind: str, call: Call, tally: Tally, number: int) -> None:
    run_dir = _prepared(table, kind)
    inject = f"inject={call.name}:signal=SIGKILL:when={call.number}"
    status = table.save(run_dir, "-e", f"trace={call.name}", "-e", inject)
    if status != -signal.SIGKILL:
        tally.lose(number, f"{kind}, {call}: not killed there, it ended with {status}")
    for problem in problems(run_dir / "checkpoints"):
        tally.lose(number, f"{kind}, killed at {call}: {problem}")
    shutil.rmtree(run_dir)


def problems(folder: Path) -> list[str]:
    """What is wrong with what a save left behind, before and after the next life has begun; changes `folder`."""
    store, found = CheckpointStore(folder, KEEP), []
    allowed = {OLD_STEPS[-1], STEP}
    try:
        newest = store.newest()
        if newest is None or newest.manifest["step"] not in allowed:
            found.append(f"the newest is {newest and newest.path.name}")
        if len(sound := _sound(store)) < 2:
            found.append(f"only {sound} are sound")
        store.remove_unfinished()
        if left := [path.name for path in folder.iterdir() if path.name.startswith(".tmp-")]:
            found.append(f"left after the next start: {left}")
        store.save(STEP + 10, {"state.json": b"{}"}, {})
        store.retain(None)
        if (after := store.newest()) is None or after.manifest["step"] != STEP + 10:
            found.append("the next save is not the newest")
    except (OSError, UserError) as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


def _sound(store: CheckpointStore) -> list[str]:
    names = []
    for path in store.all():
        try:
            verify(path)
            names.append(path.name)
        except DamagedCheckpoint:
            continue
    return names
