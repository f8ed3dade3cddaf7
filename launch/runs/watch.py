"""`dist-train watch`: a run as its own terminal shows it, from the files that it writes. Reads only."""

import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from dist_train.config.problems import printable
from dist_train.config.recorded import read_recorded
from dist_train.config.schema import RunConfig
from dist_train.errors import ExitCode, UserError
from dist_train.report.facts import ended_as, gather
from dist_train.report.live import Live, coloured, evaluation_line, most_important, stamped, styled, summarised
from dist_train.report.plot import plot
from dist_train.report.sentences import headline, sentences
from dist_train.report.words import Row, label
from dist_train.rundir.codec import read_record, read_records
from dist_train.rundir.growing import GrowingFile
from dist_train.rundir.layout import RunDir, rank_log
from dist_train.rundir.ownership import current
from dist_train.rundir.reading import is_number, parse_json
from dist_train.rundir.records import NodeRecord, RunState, VerdictSummary
from dist_train.rundir.runs import shown_path

from ..console import say
from .listing import summary_of, with_queue

LOOK_S = 0.25
QUEUE_LOOK_S = 10.0
"""Seconds between two looks at the run's files, and at its processes where a scheduler has to be asked for them."""
MOST_LINES = 10
"""Of what was there before: evaluations, and lines of a log."""
MOST_POINTS = 4_000
"""Of a curve: more than a terminal has dots."""
_NOT_FINITE = ("nan", "inf", "-inf")


def watch(folder: Path, logs: Sequence[int]) -> int:
    """Shows a run until it is over; returns 0 then, and 130 after Ctrl-C.

    Args:
        logs: ranks whose logs are shown too.
    """
    watched, was_going, asked = Watched(folder, logs), False, float("-inf")
    try:
        while True:
            if time.monotonic() - asked >= (QUEUE_LOOK_S if watched.jobs else LOOK_S):
                going, asked = watched.goes_on(), time.monotonic()
            watched.show()
            if not going and not was_going:  # where it went on, it may be between two generations
                break
            was_going = going
            time.sleep(LOOK_S)
        watched.end()
    except KeyboardInterrupt:
        say(f"\nno longer watching {shown_path(folder)}, which is left alone")
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


class Watched:
    """What has been seen of a run. On a terminal, a block of lines is drawn over and over below lines that stay: one
    write a frame, and nothing to restore."""

    def __init__(self, folder: Path, logs: Sequence[int]) -> None:
        self._folder, self._run = folder, RunDir(folder)
        self._is_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._above, self._height = "", 0
        """Lines to come above the block, and how high that is."""
        self._metrics = GrowingFile(self._run.metrics)
        self._logs = {rank: GrowingFile(rank_log(self._run.logs, rank)) for rank in logs}
        self._config: RunConfig | None = None
        self._live: Live | None = None
        self._losses: list[tuple[float, float]] = []
        self._figures: list[tuple[float, float]] = []
        """(step, value) of the training loss, and of the metric that picks the best checkpoint."""
        self._is_first, self._shown = True, -1
        """Whether it is the first look; and the last step of which anything was shown."""
        self._generation: int | None = None
        self._paced = (0, 0.0)
        """Step and time that the pace is counted from."""
        self._session, self._doing, self._state = 0.0, "", ""
        """When the newest session began, in Unix time; and what goes on in place of steps."""
        self.jobs: list[str] = []

    # ---------------------------------------------------------------- what there is

    def goes_on(self) -> bool:
        """Whether the run goes on, or waits in a queue, as far as that can be seen from here."""
        [summary] = with_queue([summary_of(self._folder, self._folder.parent)])
        self.jobs, self._state, queue = summary.jobs, summary.state, summary.queue
        if queue is not None and queue.active:
            self._doing = f"job {queue.job} {queue}" if summary.state in ("submitted", "stopped") else ""
            return True
        generation = self._run.newest_generation()
        lives = [node.lives() for node in read_records(NodeRecord, generation.nodes)] if generation else []
        with suppress(OSError):
            claim = current(self._folder)
            if claim is not None and claim.owner is not None and not claim.is_released:
                lives.append(claim.owner.lives())
        return any(lives) or (None in lives and summary.state in ("running", "starting"))

    def show(self) -> None:
        """What is new, and the block below it."""
        if self._config is None:
            self._begin()
        self._add_starts()
        self._session = self._run.environment.stat().st_mtime if self._run.environment.is_file() else 0.0
        for rank, log in self._logs.items():
            for line in log.news().splitlines()[-MOST_LINES if self._is_first else 0 :]:
                self._say(f"[rank{rank}]: {printable(line.decode(errors='replace'), 4096)}")
        if self._config is not None:
            self._add(list(_rows(self._metrics.news().splitlines())), self._config)
        self._draw(list(self._block()))
        self._is_first = False

    def _begin(self) -> None:
        with suppress(UserError):  # a run that has just begun has none
            self._config = config = read_recorded(self._folder).alone
            self._say(f"{config.name} · {config.model.name} · global batch {config.batch.global_size:,}")
            self._say(f"run  {shown_path(self._folder)}")

    def _add_starts(self) -> None:
        newest = self._run.newest_generation()
        if newest is None or newest.number == self._generation:
            return
        if self._generation is not None:
            verdicts = self._run.generation(self._generation).verdicts()
            said = ended_as(next((read_record(VerdictSummary, path) for path in verdicts), None))
            self._say(f"↻ start {newest.number}" + f"; the one before: {said}" * bool(said))
        self._generation = newest.number

    def _add(self, rows: list[Row], config: RunConfig) -> None:
        is_first, room = self._is_first, _room()
        if self._metrics.is_other:
            self._live, self._losses, self._figures = None, [], []
        oldest = min([row["step"] for row in rows if row["kind"] == "evaluation"][-MOST_LINES:], default=0)
        for (kind, unix), group in groupby(rows, key=lambda row: (row["kind"], row["time"]["unix"])):
            together = list(group)
            if self._live is None:
                one, total = together[0], RunState.of(self._folder).total_steps
                per_epoch = one["step"] / one["epoch"] if one["epoch"] else 0.0
                self._live = Live(config, total or one["step"], per_epoch, unix)
            live = self._live
            if kind == "train":
                self._add_steps(live, together, config)
                if not self._is_terminal and not is_first and live.step > self._shown:
                    self._above += stamped(live.log_line(), unix) + "\n"
            for row in together if kind == "evaluation" else ():
                parts = live.add_evaluation(row, unix)
                self._figures += [(row["step"], row[config.best])] * math.isfinite(row.get(config.best, math.nan))
                line = stamped(evaluation_line(parts, row), unix)
                line = coloured(most_important(parts, room), room) if self._is_terminal else line
                self._above += f"{line}\n" * (row["step"] >= oldest if is_first else row["step"] >= self._shown)
            if is_first and not self._is_terminal and together[-1] is rows[-1]:
                self._above += stamped(live.log_line(), unix) + "\n"
        self._shown = max([self._shown, *(row["step"] for row in rows)])

    def _add_steps(self, live: Live, rows: list[Row], config: RunConfig) -> None:
        """The time left is told by the pace of this session."""
        step, clock = rows[-1]["step"], rows[-1]["time"]
        if self._paced[1] < self._session:
            self._paced = step, clock["unix"]
        steps, took = step - self._paced[0], clock["unix"] - self._paced[1]
        is_known = steps >= 3 and took >= 1 and config.train.stop_after is None
        left = took / steps * (live.total_steps - step) if is_known else None
        speeds = {name: value for name, value in clock.items() if name.endswith("_per_s") and value}
        live.add_steps(rows, summarised(rows), speeds, left, clock["unix"])
        self._losses += [(row["step"], row["loss"]) for row in rows if math.isfinite(row.get("loss", math.nan))]

    # ---------------------------------------------------------------- what is shown

    def _say(self, text: str) -> None:
        shown = printable(text, 4096)
        room = _room() if self._is_terminal else len(shown) + 1
        self._above += textwrap.fill(shown, room, break_long_words=False, break_on_hyphens=False) + "\n"

    def _draw(self, block: list[str]) -> None:
        up = f"\x1b[{self._height - 1}A" if self._height > 1 else ""
        erased = f"\r{up}\x1b[J" if self._height else ""
        block = block if self._is_terminal else []
        sys.stdout.write(erased + self._above + "\n".join(block))
        sys.stdout.flush()
        self._height, self._above = len(block), ""

    def _block(self) -> Iterator[str]:
        yield from self._curves()
        if self._live is None:
            yield styled(self._doing or "starting …", "cyan")
        else:
            self._live.began = self._session
            yield coloured(self._live.bar(_room(), time.time(), self._doing), _room())

    def _curves(self) -> Iterator[str]:
        """Side by side: the training loss, and the figure that picks the best checkpoint."""
        if self._config is None or not (sys.stdout.encoding or "").lower().startswith("utf"):
            return
        known = {"training loss": self._losses, label(self._config.best): self._figures}
        known = {title: points for title, points in known.items() if len(points) > 1}
        width = (_room() - 2 * (len(known) - 1)) // max(1, len(known))
        height = max(3, min(8, shutil.get_terminal_size().lines - 8))
        plots = [plot(title, ys[:: 1 + len(ys) // MOST_POINTS], width, height) for title, ys in known.items()]
        yield from ("  ".join(parts).rstrip() for parts in zip(*plots, strict=True))

    def end(self) -> None:
        """The curves as they are, and how it ended."""
        self._above += "".join(f"{line}\n" for line in self._curves()) if self._is_terminal else ""
        facts = gather(self._folder)
        said = headline(facts).replace("Running", self._state.capitalize())  # whatever has not written its end
        sign = {"Done": "✓", "Stopped": "■"}.get(said.partition(" ")[0], "✗")
        self._say(f"{sign} {said}. {' '.join(sentences(facts)[:1])}".rstrip())
        if self._run.report.is_file():
            self._say(f"  report      {shown_path(self._run.report)}")
        self._draw([])


def _rows(lines: list[bytes]) -> Iterator[Row]:
    """The numbers of each row, with kind, step, epoch, split and time, whatever else a file may hold."""
    for line in lines:
        with suppress(ValueError, TypeError, OverflowError):
            row = parse_json(line)
            if isinstance(row, dict) and row.get("kind") in ("train", "evaluation") and is_number(row.get("step")):
                known = {key: float(value) for key, value in row.items() if _is_figure(value)}
                times = {key: float(value) for key, value in dict(row.get("time") or {}).items() if _is_figure(value)}
                rest = {key: row[key] for key in ("kind", "step", "split", "per_class") if key in row}
                yield {"epoch": 0.0, **known, **rest, "time": {"unix": 0.0, **times}}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) or value in _NOT_FINITE


def _room() -> int:
    return shutil.get_terminal_size().columns - 1
