"""Signals at random moments to random subsets of ranks and launcher: all ranks stop after the same step, saved once.

What is seen: each rank leaves one byte per optimizer step that it does (fixture.CountedSGD), and the kernel tells of
every checkpoint that gets its name (inotify). A run is stopped and resumed, in another world size, until it is done,
and must end equal to one that nothing was done to. SIGUSR2 saves and goes on. A third of the moments lie inside a save.
"""

import itertools
import os
import random
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.checkpoint.store import CheckpointStore, step_of
from dist_train.errors import UserError
from launch.processes import catches
from tests.faults.fixture import SAVE_EVERY, WITH_COUNTS, record, write_configs
from tests.faults.kills import MOST_FAILURES, Lost, make_checkpoints, nothing_left
from tests.faults.lives import HANG_S, LaunchedLife, PooledLife, kill, pooled, undisturbed, until
from tests.faults.tally import Order, Tally
from tests.faults.watch import CREATED, MOVED_HERE, Watch

WORLD_SIZES = (1, 2, 3, 4)
PER_RUN, LAUNCHED_PER_RUN, LAUNCHED_EVERY = 8, 2, 4
MOMENT_S, LAUNCHED_MOMENT_S = 0.6, 8.0
"""A random moment is one of this time, which begins when a rank can be asked, or with the launcher."""
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}
TWICE_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One signal, as it is planned.

    Attributes:
        part: of the time that a random moment is one of.
        save: that it is sent inside the next save instead.
        to: for each process in turn, whether it gets the signal; the launcher first.
        twice: the launcher gets it again.
    """

    number: signal.Signals
    part: float
    save: bool
    to: tuple[bool, ...]
    twice: bool

    @classmethod
    def drawn(cls, dice: random.Random) -> "Ask":
        number = dice.choice((*CODES, signal.SIGUSR2))
        to = tuple(dice.random() < 0.5 for _ in range(9))
        return cls(number=number, part=dice.random(), save=dice.random() < 1 / 3, to=to, twice=dice.random() < 0.25)

    def pick(self, pids: Sequence[int]) -> list[int]:
        """At least the last of them."""
        return [pid for pid, wanted in zip(pids, self.to, strict=False) if wanted] or list(pids[-1:])


@dataclass(kw_only=True)
class Count:
    pooled: int = 0
    launched: int = 0
    stops: int = 0
    goes_on: int = 0
    seconds: list[float] = field(default_factory=list)
    """From a signal to the end of all ranks."""


def campaign(order: Order) -> Tally:
    """At least `order.count` signals; every fourth run is one of the real launcher."""
    tally, count = Tally(campaign="signals", seed=order.seed), Count()
    write_configs(order.folder)
    expected = undisturbed(order.folder, WITH_COUNTS)
    for number in itertools.count() if order.only is None else [order.only]:
        run, dice = f"run{number}", order.dice("signals", number)
        make_checkpoints(order.folder / run)
        try:
            (_launched_run if number % LAUNCHED_EVERY == 0 else _pooled_run)(order.folder, run, dice, count)
            if different := expected.difference(record(order.folder / run)):
                tally.lose(number, different, unequal=True)
        except (Lost, TimeoutError, UserError) as loss:
            tally.lose(number, str(loss))
        if count.pooled + count.launched >= order.count or len(tally.failures) >= MOST_FAILURES:
            break
    tally.injections = count.pooled + count.launched
    tally.facts = {"pooled": count.pooled, "launched": count.launched, "stops": count.stops, "saves": count.goes_on}
    tally.facts["median s to the end"] = f"{statistics.median(count.seconds or [0.0]):.2f}"
    return tally


@dataclass(kw_only=True)
class Account:
    """What one life has done, by what it left."""

    first_step: int
    steps: list[int]
    """Done in this life, by rank."""
    commits: list[int]
    """Steps of the checkpoints that got their name, in order."""

    @classmethod
    def of(cls, first_step: int, folder: Path, watch: Watch) -> "Account":
        steps = [path.stat().st_size for path in sorted(folder.iterdir())]
        names = [name for kind, name in watch.seen() if kind & MOVED_HERE and name.startswith("step-")]
        return cls(first_step=first_step, steps=steps, commits=[step_of(Path(name)) for name in names])

    def problems(self, stopped: bool, extra: int) -> list[str]:
        """What is wrong.

        Args:
            stopped: by a signal.
            extra: how often a process was asked to save and go on: each may become a save of its own.
        """
        found = []
        if len(set(self.steps)) > 1:
            found.append(f"ranks did {self.steps} steps")
        if len(set(self.commits)) < len(self.commits):
            found.append(f"saved twice: {self.commits}")
        last = self.first_step + max(self.steps, default=0)
        if stopped and self.steps and last != self.first_step and self.commits[-1:] != [last]:
            found.append(f"stopped after step {last}, saved {self.commits}")
        asked = [step for step in self.commits if step % SAVE_EVERY and not (stopped and step == last)]
        if len(asked) > extra:
            found.append(f"saved {asked} beside what was due and the last, asked {extra} times")
        return found


def _newest_step(run_dir: Path) -> int:
    return max((step_of(path) for path in CheckpointStore(run_dir / "checkpoints").all()), default=0)


def _emptied(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


# ---------------------------------------------------------------- in the pool


def _pooled_run(folder: Path, run: str, dice: random.Random, count: Count) -> None:
    plan = [Ask.drawn(dice) for _ in range(PER_RUN)]
    for _ in range(3 * PER_RUN):
        size, background = dice.choice(WORLD_SIZES), dice.choice(("true", "false"))
        before, steps = _newest_step(folder / run), _emptied(folder / "steps" / run)
        words = (WITH_COUNTS, run, size, f"checkpoint.background={background}")
        with Watch(folder / run / "checkpoints") as watch, pooled(folder, *words) as life:
            stop, extra = _ask_pooled(life, plan, watch, count)
            began = time.monotonic()
            codes = life.wait()
            nothing_left(life, stop)
            account = Account.of(before, steps, watch)
        told = f"{size} ranks, {stop}: {codes}, {account}"
        done = codes == [0] * size
        if stop is not None and not done:
            count.seconds.append(time.monotonic() - began)
            if codes != [CODES[stop.number]] * size:
                raise Lost(f"{told}\n{life.failures()}")
        elif not done:
            raise Lost(f"{told}\n{life.failures()}")
        if problems := account.problems(stop is not None and not done, extra):
            raise Lost(f"{'; '.join(problems)}: {told}")
        if done:
            return
    raise Lost("it never ended")


def _ask_pooled(life: PooledLife, plan: list[Ask], watch: Watch, count: Count) -> tuple[Ask | None, int]:
    """Sends what is planned until it is one that stops. Returns that one, and how many were asked to save and go on."""
    extra = 0
    if not until(lambda: len(life.ready_for_signals()) == len(life.pids) or life.ends_within(0), HANG_S):
        raise Lost("the ranks did not get ready")
    while plan:
        ask = plan[0]
        if ask.save:
            watch.wait_for(CREATED, ".tmp-", watch.count(CREATED, ".tmp-") + 1, life.endings(), HANG_S)
        if life.ends_within(0.0 if ask.save else ask.part * MOMENT_S):
            return None, extra
        picked = ask.pick(life.pids)
        kill(picked, ask.number)
        plan.pop(0)
        count.pooled += 1
        if ask.number in CODES:
            count.stops += 1
            return ask, extra
        count.goes_on += 1
        extra += len(picked)
    return None, extra


# ---------------------------------------------------------------- by the launcher


def _launched_run(folder: Path, run: str, dice: random.Random, count: Count) -> None:
    plan = [Ask.drawn(dice) for _ in range(LAUNCHED_PER_RUN)]
    while True:
        before, steps = _newest_step(folder / run), _emptied(folder / "steps" / run)
        words = (WITH_COUNTS, "--run-dir", run, "--nproc-per-node", "2")
        with Watch(folder / run / "checkpoints") as watch, LaunchedLife(folder, run, *words) as life:
            stop, extra, began = _ask_launched(life, plan, watch, count)
            code = life.wait()
            count.seconds += [] if stop is None else [time.monotonic() - began]
            nothing_left(life, stop)
            account = Account.of(before, steps, watch)
        told = f"{stop}: exit code {code}, {account}\n{life.tail()}"
        if code == 0:
            return
        # One that came before there was anything to save, or twice, has saved nothing: it is not to be requeued.
        allowed = {CODES[stop.number], *([143] if not account.steps or stop.twice else [])} if stop else set()
        if code not in allowed:
            raise Lost(told)
        forced = stop is not None and (stop.twice or not account.steps)
        if problems := [] if forced else account.problems(True, extra):
            raise Lost(f"{'; '.join(problems)}: {told}")


def _ask_launched(life: LaunchedLife, plan: list[Ask], watch: Watch, count: Count) -> tuple[Ask | None, int, float]:
    """As _ask_pooled, and when it was sent. Ranks without a handler yet are left out: there, signals are ignored."""
    extra = 0
    while plan:
        ask = plan[0]
        if ask.save:
            ended = os.pidfd_open(life.process.pid)
            watch.wait_for(CREATED, ".tmp-", watch.count(CREATED, ".tmp-") + 1, [ended], HANG_S)
            os.close(ended)
        if life.ended_within(0.0 if ask.save else ask.part * LAUNCHED_MOMENT_S):
            return None, extra, 0.0
        ready = [pid for pid in life.ranks(life.agent()) if catches(pid, signal.SIGUSR2)]
        launcher = [life.process.pid] if catches(life.process.pid, signal.SIGUSR2) else []
        if not (picked := ask.pick([*launcher, *ready])):
            if not until(lambda: catches(life.process.pid, signal.SIGUSR2) or life.ended(), HANG_S):
                raise Lost("the launcher never listened")
            continue
        began = time.monotonic()
        kill(picked, ask.number)
        plan.pop(0)
        count.launched += 1
        if ask.number in CODES:
            count.stops += 1
            if ask.twice and not life.ended_within(TWICE_S):
                kill([life.process.pid], ask.number)
            return ask, extra, began
        count.goes_on += 1
        extra += 2 * len(picked)  # the launcher passes it on to both
    return None, extra, 0.0
