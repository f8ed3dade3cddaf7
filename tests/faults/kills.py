"""SIGKILL of anything at any moment, over and over, until the run is done: it ends as if nothing had happened.

Two ways, counted apart: ranks of the pool, in another world size from life to life, resumed by a new life; and the real
launcher, which starts again by itself, or is started again by hand when it was itself the victim.

Half of the kills are aimed inside a save: the kernel tells when a save creates its temporary directory (inotify), and
the kill follows after a random part of the time that a save takes. Those that left a half-written one behind are
counted as inside. The others come at a random moment of starting and training.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dist_train.checkpoint.store import CheckpointStore
from dist_train.errors import UserError
from tests.faults.fixture import PLAIN, Record, record, write_configs
from tests.faults.kill_plan import Damage, Kill, Lost
from tests.faults.lives import (
    HANG_S,
    LEFT_BEHIND_S,
    LaunchedLife,
    PooledLife,
    command_of,
    kill,
    pooled,
    undisturbed,
    until,
)
from tests.faults.tally import Order, Tally
from tests.faults.watch import CREATED, MODIFIED, MOVED_HERE, Watch

WORLD_SIZES = (1, 2, 3, 4, 8)
KILLS_PER_RUN, LAUNCHED_KILLS_PER_RUN = 10, 4
"""Then the run is left alone, and must end equal."""
LAUNCHED_EVERY = 4
UNHURT_S = 0.5
"""A life that has not ended so long after a kill goes on: it was a writer."""
MOST_FAILURES = 5
"""Then it is no use to go on."""
RANDOM_S = 1.2
"""Of a life in the pool: a random moment is one of this time, which begins with its processes."""
VICTIMS = ("rank", "rank", "first", "loader", "writer", "all")
LAUNCHED_VICTIMS = (*VICTIMS, "launcher", "launcher", "agent", "server")
START_S, TRAINING_S = 2.0, 1.5
"""Of the launcher: about what its ranks take to their first step, and what is trained in at random."""


def prepare(folder: Path) -> tuple[Record, Damage]:
    """What every run must end as, and an empty account that knows how long a save takes."""
    write_configs(folder)
    damage = Damage()
    saves = make_checkpoints(folder / "undisturbed")
    return undisturbed(folder, look=partial(damage.measure_saves, saves)), damage


def campaign(order: Order) -> Tally:
    """At least `order.count` kills; every fourth run is one of the real launcher."""
    tally = Tally(campaign="kills", seed=order.seed)
    expected, damage = prepare(order.folder)
    numbers = itertools.count() if order.only is None else iter([order.only])
    for number in numbers:
        run = f"run{number}"
        make_checkpoints(order.folder / run)
        dice = order.dice("kills", number)
        try:
            if number % LAUNCHED_EVERY == 0:
                plan = [Kill.drawn(dice, LAUNCHED_VICTIMS) for _ in range(LAUNCHED_KILLS_PER_RUN)]
                launched_run(order.folder, run, dice, damage, plan)
            else:
                plan = [Kill.drawn(dice, VICTIMS) for _ in range(KILLS_PER_RUN)]
                pooled_run(order.folder, run, dice, damage, plan)
            if different := expected.difference(record(order.folder / run)):
                tally.lose(number, different, unequal=True)
        except (Lost, TimeoutError, UserError) as loss:
            tally.lose(number, str(loss))
        if damage.pooled + damage.launched >= order.count or len(tally.failures) >= MOST_FAILURES:
            break
    tally.injections = damage.pooled + damage.launched
    tally.facts = damage.facts()
    return tally


def make_checkpoints(run_dir: Path) -> Path:
    """Makes the folder, so that it can be watched from the beginning."""
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True)
    return folder


# ---------------------------------------------------------------- in the pool


def pooled_run(
    folder: Path, run: str, dice: random.Random, damage: Damage, plan: list[Kill], sizes: Sequence[int] = ()
) -> None:
    """Kills life after life of folder/run until the plan is empty, then lets it end.

    Args:
        sizes: numbers of ranks of its lives, then random ones.

    Raises:
        Lost: when a life does not end as it should.
    """
    sizes = [*sizes, *dice.choices(WORLD_SIZES, k=2 * KILLS_PER_RUN)]
    told: list[str] = []
    for size in sizes:
        words = [f"checkpoint.background={dice.choice(('true', 'false'))}"]
        with Watch(folder / run / "checkpoints") as watch, pooled(folder, PLAIN, run, size, *words) as life:
            struck = _strike_pooled(life, plan, watch, damage)
            codes = life.wait()
            nothing_left(life, told)
        told.append(f"{size} ranks, {struck or 'left alone'}: {codes}")
        if struck:
            damage.note(folder / run)
        elif any(codes):
            raise Lost(f"a life that nothing was done to failed: {told}\n{life.failures()}")
        if codes == [0] * size:
            break
    with pooled(folder, PLAIN, run, 2) as life:  # after the last step there is nothing to do
        if life.wait() != [0, 0]:
            raise Lost(f"a finished run would not start again: {told}\n{life.failures()}")


def _strike_pooled(life: PooledLife, plan: list[Kill], watch: Watch, damage: Damage) -> str:
    """Kills at the planned moments until the life ends: the loss of a writer does not end it. Says what was killed."""
    told = []
    while plan:
        kind = plan[0]
        if kind.save:
            number = watch.count(CREATED, ".tmp-") + kind.save
            came = watch.wait_for(CREATED, ".tmp-", number, life.endings(), HANG_S)
            wait_s = kind.part * damage.save_s
        else:
            came, wait_s = True, kind.part * (RANDOM_S + 0.1 * len(life.pids))
        if not came or life.ends_within(wait_s) or not kill(picked := kind.pick(life.processes())):
            break
        told.append(str(plan.pop(0)))
        damage.pooled += 1
        damage.look(watch.folder, picked)
        if life.ends_within(UNHURT_S):
            break
    return ", ".join(told)


def nothing_left(life: PooledLife | LaunchedLife, told: object) -> None:
    if not until(lambda: not life.left(), LEFT_BEHIND_S):
        left = [f"{pid} {command_of(pid)}" for pid in life.left()]
        raise Lost(f"still alive {LEFT_BEHIND_S:g} s later: {left}; {told}")


# ---------------------------------------------------------------- by the launcher


def launched_run(folder: Path, run: str, dice: random.Random, damage: Damage, plan: list[Kill]) -> None:
    """The same under `dist-train train --max-restarts`, on two ranks; a killed launcher is started again by hand.

    Raises:
        Lost: when something outlives its launcher, or the run does not end well.
    """
    words = [PLAIN, "--run-dir", run]
    flags = ["--nproc-per-node", "2", "--max-restarts", "99"]
    told: list[str] = []
    while True:
        background = f"checkpoint.background={dice.choice(('true', 'false'))}"
        with LaunchedLife(folder, run, *words, *flags, background) as life:
            _strike_generations(life, plan, damage, told)
            code = life.wait()
            nothing_left(life, told)
            if code == 0:
                return
            if code != -signal.SIGKILL:
                raise Lost(f"exit code {code} after {told}\n{life.tail()}")
        if (folder / run / "config.yaml").exists():  # else it was killed before it had begun
            words = ["--resume", run]


def _strike_generations(life: LaunchedLife, plan: list[Kill], damage: Damage, told: list[str]) -> None:
    """Kills one generation after another, until the launcher is killed or the run is over or the plan is empty."""
    store = CheckpointStore(life.run_dir / "checkpoints")
    agent, newest, stuck = None, store.all()[:1], 0
    while plan and (agent := _next_agent(life, agent)) is not None:
        with Watch(store.folder) as saves, Watch(life.run_dir, MODIFIED) as rows:
            # The launcher gives up after three generations that saved nothing new, as it should.
            if not _await_moment(plan[0], life, saves, rows, damage, patient=stuck == 2):
                return
            processes, launcher_too = life.processes(), plan[0].victim in ("launcher", "all")
            if not kill(picked := plan[0].pick(processes)):
                return
        told.append(str(plan.pop(0)))
        damage.launched += 1
        damage.look(store.folder, picked)
        if picked == processes["writer"]:  # its rank starts another: the generation goes on
            agent = None
            continue
        damage.killed_at = time.monotonic()
        if launcher_too:
            life.wait()
            nothing_left(life, told)
        else:
            _next_agent(life, agent)
        damage.note(life.run_dir)
        stuck, newest = (0, store.all()[:1]) if store.all()[:1] != newest else (stuck + 1, newest)
        if launcher_too:
            return


def _next_agent(life: LaunchedLife, before: int | None) -> int | None:
    """The agent of the next generation; None when the launcher has ended."""
    found: list[int] = []

    def there() -> bool:
        agent = life.agent()
        found[:] = [agent] if agent and agent != before else []
        return bool(found) or life.ended()

    if not until(there, HANG_S):
        raise Lost(f"no new generation within {HANG_S:g} s\n{life.tail()}")
    return found[0] if found else None


def _await_moment(
    planned: Kill, life: LaunchedLife, saves: Watch, rows: Watch, damage: Damage, *, patient: bool
) -> bool:
    """False when the launcher ended before the moment came."""
    if planned.early and not planned.save and not patient:
        return not life.ended_within(planned.part * START_S)
    if not until(lambda: rows.count(MODIFIED, "metrics.jsonl") > 0 or life.ended(), HANG_S):
        raise Lost(f"no step within {HANG_S:g} s\n{life.tail()}")
    damage.trains_again()
    if patient and not until(lambda: saves.count(MOVED_HERE, "step-") > 0 or life.ended(), HANG_S):
        raise Lost(f"no checkpoint within {HANG_S:g} s\n{life.tail()}")
    if not planned.save:
        return not life.ended_within(planned.part * TRAINING_S)
    if life.ended():
        return False
    number = saves.count(CREATED, ".tmp-") + 1 if patient else planned.save
    ended = os.pidfd_open(life.process.pid)
    try:
        came = saves.wait_for(CREATED, ".tmp-", number, [ended], HANG_S)
    finally:
        os.close(ended)
    return came and not life.ended_within(planned.part * damage.save_s)
