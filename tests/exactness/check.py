"""What is asserted of one config: the same bits on any number of ranks, by any way, or refused before the first step.

The lives of a draw:

- whole, on 1 and on 3 ranks, and on 2 with other loading processes;
- stopped after some steps on one number of ranks, or killed in the midst, and resumed on another;
- the last checkpoint evaluated by itself;
- the first gradient's norm against a few lines of plain torch, in fp32.

Where time is short, only the life on 1 rank is whole: the one in pieces is on 2 ranks and on 3.
"""

import math
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.exactness import lives
from tests.exactness.lives import Ended, Result
from tests.exactness.pool import Hung
from tests.exactness.refusals import reason_for

RunRanks = Callable[..., list[Any]]
"""Pool.run or rank_pool.run_ranks."""
NON_FINITE = 11
ENDS_EQUAL = (0, NON_FINITE)
REFUSES = (2, 10, 13)
CLOSE = 1e-3
"""Relative, for the first gradient against plain torch, whose sums are in another order."""
ROUNDING = 3
"""Times the error of plain torch: BatchNorm of a few nearly equal values leaves few of a gradient's digits."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a draw.

    Attributes:
        kind: equal; diverged, equally on any number of ranks; refused; or wrong.
        detail: what is wrong, or the row of the table of refusals.
    """

    kind: str
    detail: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.kind == "wrong"


class Wrong(AssertionError):
    """Said in one line."""


class Refused(Exception):
    """As it should be, with the reason."""


def check(
    run_ranks: RunRanks,
    config: dict[str, Any],
    folder: Path,
    *,
    thorough: bool,
    why_refused: Callable[[Ended], str | None] = reason_for,
) -> Verdict:
    """All lives of one config, in a folder of its own, which is removed.

    Args:
        thorough: False where time is short.
        why_refused: gives the reason of a refusal that is right, None for one that is not.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lived = _Lives(run_ranks, config, folder, thorough, why_refused)
    try:
        code = lived.all_equal() if config.get("exact", True) else lived.nearly_equal()
    except Refused as refused:
        return Verdict(kind="refused", detail=str(refused))
    except (Wrong, Hung) as wrong:
        return Verdict(kind="wrong", detail=str(wrong))
    finally:
        shutil.rmtree(folder)
    return Verdict(kind="equal" if code == 0 else "diverged")


class _Lives:
    """The lives of one config."""

    def __init__(
        self, run_ranks: RunRanks, config: dict[str, Any], folder: Path, thorough: bool, why_refused: Any
    ) -> None:
        self._run_ranks, self._config, self._folder = run_ranks, config, folder
        self._thorough, self._why_refused = thorough, why_refused
        self._settled = config.get("batch", {}).get("microbatches", "auto") != "auto"
        self._chance = zlib.crc32(yaml.safe_dump(config).encode())
        """Decides what would cost too much to try in every way."""

    def all_equal(self) -> int:
        """Returns the exit code; 0 or 11."""
        # `auto` is the first life's number of ranks: other numbers are other runs then.
        sizes = ([1, 2, 3] if self._thorough else [1]) if self._settled else [2]
        whole = {size: self._whole(size) for size in sizes}
        for size in sizes[1:]:
            self._same(whole[1], whole[size], f"1 rank and {size}")
        first = whole[sizes[0]]
        self._in_pieces(first, self._orders())
        if first.ended.code == NON_FINITE:
            self._really_diverged(first)
        else:
            self._evaluated(sizes[0], first)
            self._as_by_hand(first)
        return first.ended.code

    def nearly_equal(self) -> int:
        """Without `exact`: the same samples and nearly the same first loss on any number of ranks, the same bits again
        on the same number."""
        sizes = (1, 2) if self._settled else (2,)
        whole = {size: self._whole(size) for size in sizes}
        one, two = whole[sizes[0]], whole[2]
        if self._settled and one.samples != two.samples:
            raise Wrong("1 rank and 2: samples.jsonl differs")
        if one.rows and not math.isclose(one.rows[0]["loss"], two.rows[0]["loss"], rel_tol=CLOSE):
            raise Wrong(f"1 rank and 2: first loss {one.rows[0]['loss']} and {two.rows[0]['loss']}")
        self._in_pieces(two, (2, 2))
        return one.ended.code

    def _orders(self) -> tuple[int, int]:
        if not self._settled:
            return 2, 1
        orders = [(2, 1), (1, 3), (3, 2), (1, 2)] if self._thorough else [(3, 2), (2, 3)]
        return orders[self._chance % len(orders)]

    def _whole(self, size: int) -> Result:
        other_loading = [self._other_loading()] if size == 2 else []
        found = self._life(f"whole{size}", size, *other_loading)
        if found.ended.code in REFUSES and not found.began:
            reason = self._why_refused(found.ended)
            if reason is None:
                raise Wrong(f"refused on {size} ranks with {found.ended}, which no row of the table says")
            raise Refused(reason)
        if found.ended.code not in ENDS_EQUAL:
            steps = f"after {len(found.rows)} rows" if found.began else "before the first step"
            raise Wrong(f"{size} ranks: {found.ended}, {steps}")
        return found

    def _other_loading(self) -> str:
        drawn = self._config.get("loader", {}).get("workers", "auto")
        return "loader.workers=1" if drawn in (0, "auto") else "loader.workers=0"

    def _life(self, run: str, size: int, *overrides: str) -> Result:
        place = self._folder / run
        ended = self._run_ranks(lives.live, size, str(self._folder / "config.yaml"), str(place), *overrides)
        # A rank that fails takes the others' connections with it: theirs is not the reason.
        first = next((one for one in ended if "losed by peer" not in one.said), ended[0])
        return lives.result(place, first)

    def _in_pieces(self, expected: Result, sizes: tuple[int, int]) -> None:
        """Stopped or killed at some step, then resumed on another number of ranks."""
        step = 1 + self._chance // 7 % 2
        # Killed before its first save, a run with `auto` begins anew on another number of ranks.
        killed = self._settled and self._chance // 31 % 8 == 0
        way = f"{'killed' if killed else 'stopped'} after step {step} on {sizes[0]} ranks, resumed on {sizes[1]}"
        if killed:
            self._killed("pieces", sizes[0], step)
        else:
            self._life("pieces", sizes[0], f"train.stop_after={step} steps", self._other_loading())
        self._same(expected, self._life("pieces", sizes[1]), way)

    def _killed(self, run: str, size: int, step: int) -> None:
        arguments = (str(self._folder / "config.yaml"), str(self._folder / run))
        self._run_ranks(lives.live_and_die, size, step, *arguments)

    def _same(self, one: Result, other: Result, way: str) -> None:
        if difference := one.difference(other):
            raise Wrong(f"{way}: {difference}")

    def _really_diverged(self, whole: Result) -> None:
        """A gradient that overflows under a scaler is no divergence: its step is left out."""
        scaled = self._config.get("train", {}).get("precision") == "fp16"
        names = ("loss",) if scaled else ("loss", "grad_norm")
        figures = [float(row[name]) for row in whole.rows for name in names if name in row]
        if all(math.isfinite(figure) for figure in figures):
            raise Wrong(f"{whole.ended}, and all of metrics.jsonl is finite")

    def _evaluated(self, size: int, whole: Result) -> None:
        """The newest checkpoint, evaluated alone, has the figures of the training's last evaluation."""
        row = next(row for row in reversed(whole.rows) if row.get("split") == "evaluation")
        checkpoint = self._folder / f"whole{size}" / "checkpoints" / f"step-{row['step']:08d}"
        found = self._run_ranks(lives.figures, 1, str(checkpoint))[0]
        if isinstance(found, Ended):
            raise Wrong(f"the checkpoint cannot be evaluated: {found}")
        for name, value in found.items():
            if row.get(name) != value:
                raise Wrong(f"evaluated alone, {name} is {value}, in the training {row.get(name)}")

    def _as_by_hand(self, whole: Result) -> None:
        """Where the two differ, in another memory format say, both must be as near to what float64 gives."""
        if not self._settled or self._config.get("train", {}).get("precision", "fp32") != "fp32":
            return
        ours, by_hand = whole.rows[0]["grad_norm"], self._by_hand(in_float64=False)
        if math.isclose(by_hand, ours, rel_tol=CLOSE):
            return
        exact = self._by_hand(in_float64=True)
        if abs(ours - exact) > CLOSE * exact + ROUNDING * abs(by_hand - exact):
            raise Wrong(f"the first gradient's norm is {ours}, of plain torch {by_hand}, in float64 {exact}")

    def _by_hand(self, *, in_float64: bool) -> float:
        return self._run_ranks(lives.plain_gradient_norm, 1, str(self._folder / "config.yaml"), in_float64)[0]
