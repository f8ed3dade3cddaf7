"""Where the time of a session goes: for metrics.jsonl, for a line on ranks that are late, and for one at the end."""

from dataclasses import asdict

from dist_train.report.bottleneck import Account
from dist_train.report.budget import Budget, Times
from dist_train.report.late import Late, LateRanks
from dist_train.tracking.base import Row, RunFacts

WORTH_A_LINE, LEAST_S = 0.2, 10.0
"""Of a session's time, and seconds, that must be lost before the console says so."""


class SpentTime:
    """Rank 0's account."""

    def __init__(self, facts: RunFacts) -> None:
        self._config, self._setting, self._ranks = facts.config, facts.setting, LateRanks()
        self._intervals: list[tuple[Budget, list[Late]]] = []
        self._is_new = True

    def add(self, times: Times) -> tuple[Row, dict[str, float], list[str]]:
        """Takes in an interval.

        Returns:
            what `time` of its last row has besides, the budget of the mean rank, and lines for people.
        """
        budget = Budget.of(times)
        if budget is None:
            return {}, {}, []
        notes = self._ranks.add(times)
        late = self._ranks.late
        self._intervals = [*self._intervals, (budget, late)]
        if (account := self._account) is not None:  # one in place of several: a training may have a million
            self._intervals = [(account.total, account.late_by_step)]
        row = budget.as_row() | ({"late": [one.as_row() for one in late]} if late else {})
        if self._is_new and self._setting is not None:
            row["setting"] = asdict(self._setting)
        self._is_new = False
        return row, budget.mean, notes

    @property
    def _account(self) -> Account | None:
        return None if self._setting is None else Account.of(self._config, self._setting, self._intervals)

    def worth_saying(self) -> str | None:
        """The bottleneck, where much was lost to it."""
        account = self._account
        found = account.bottleneck if account is not None else None
        if found is None or found.share < WORTH_A_LINE or found.seconds < LEAST_S:
            return None
        return found.sentence
