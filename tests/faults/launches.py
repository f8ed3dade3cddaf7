"""The launcher itself: killed over and over it leaves nothing behind, and every restart comes up."""

import itertools

from dist_train.errors import UserError
from tests.faults.fixture import record
from tests.faults.kill_plan import Damage, Kill, Lost
from tests.faults.kills import MOST_FAILURES, launched_run, make_checkpoints, prepare
from tests.faults.tally import Order, Tally

KILLS_PER_RUN = 10
"""Then the run is left alone, and must end equal."""


def launchers(order: Order) -> Tally:
    """SIGKILL of the launcher, at random and inside saves: 5 s later nothing of it is left, and the run goes on."""
    return _campaign("launchers", ("launcher",), order)


def restarts(order: Order) -> Tally:
    """SIGKILL of a rank: the next generation comes up each time."""
    return _campaign("restarts", ("rank",), order)


def _campaign(name: str, victims: tuple[str, ...], order: Order) -> Tally:
    tally = Tally(campaign=name, seed=order.seed)
    expected, measured = prepare(order.folder)
    damage = Damage(save_s=measured.save_s)
    for number in itertools.count() if order.only is None else iter([order.only]):
        run, dice = f"run{number}", order.dice(name, number)
        make_checkpoints(order.folder / run)
        left = min(KILLS_PER_RUN, order.count - damage.launched)
        try:
            launched_run(order.folder, run, dice, damage, [Kill.drawn(dice, victims) for _ in range(left)])
            if different := expected.difference(record(order.folder / run)):
                tally.lose(number, different, unequal=True)
        except (Lost, TimeoutError, UserError) as loss:
            tally.lose(number, str(loss))
        if damage.launched >= order.count or len(tally.failures) >= MOST_FAILURES:
            break
    tally.injections, tally.facts = damage.launched, damage.facts()
    return tally
