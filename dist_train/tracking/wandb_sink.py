"""The training's end of W&B: rows go down a pipe to a process of their own, and nothing ever waits for it.

In the training process itself, wandb.init can hang for minutes, wandb replaces sys.exit and sys.excepthook, and waits
for the network when Python exits. So wandb.py runs beside it; this file never imports wandb, writes without blocking,
and ends that process if it is not done in time. W&B's own copy of the run then still lies in the run directory.
"""

import contextlib
import json
import math
import os
import secrets
import select
import signal
import string
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dist_train.heartbeat import set_aside
from dist_train.report.words import POSITION, telling
from dist_train.rundir.files import open_to_append, write_atomic
from dist_train.rundir.layout import RunDir
from dist_train.rundir.reading import read_bytes
from dist_train.rundir.records import Best, RunState
from dist_train.tracking import base
from dist_train.tracking.base import Interval, Note, Own, Row, RunFacts, SessionOutcome, Sink
from dist_train.tracking.own_process import begin_process
from dist_train.tracking.wandb_messages import Begin, Panel

PROJECT = "dist-train"
"""Of runs for which no project is given."""
MOST_WAITING = 32 * 2**20
"""Bytes kept for a process that does not read; more means that it never will."""
CELL = ("Actual", "Predicted", "nPredictions")
MOST_CELLS = 10_000
"""Cells of a confusion matrix that W&B draws; its tables end there."""
UPLOAD_TIMEOUT_S = {"done": 30.0, "stopped": 3.0, "failed": 3.0}
"""How long finish waits for the upload. Somebody, or a scheduler with a limit, waits for a stop."""
OPEN_TIMEOUT_S = 5.0
"""How long it waits at most where the run is not open yet, as when the server does not answer."""
LOCAL_TIMEOUT_S = {"done": 120.0, "stopped": 30.0, "failed": 30.0}
"""How long finish waits for what needs no network: a busy machine takes that long to start W&B's programs, and what is
not written by then is lost. From the start it is all there is to wait for where the run is offline."""
SILENT_S = 2.0
"""How long it waits before it tells the user."""
CLOSE_TIMEOUT_S = 10.0
"""How long close waits for it after an error of the training, to mark the run as failed."""

NOT_SENT = {"run_dir", "config", "name", "first_step", "stop_step", "classes"}
"""What W&B knows already, or need not know."""
MOST_OF_ID = 1024
"""Bytes of a file with an id in it: it is sent to the server, and so must not be any other file."""

_PRIVACY = ("disabled", "offline", "online")


def wandb_mode(configured: str) -> str:
    """auto, online, offline or disabled: of the config and WANDB_MODE (or WANDB_DISABLED), the more private one."""
    asked = os.environ.get("WANDB_MODE", "").strip().lower()
    asked = {"dryrun": "offline", "run": "online", "shared": "online"}.get(asked, asked)
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
        asked = "disabled"
    if asked not in _PRIVACY:
        return configured
    if configured == "auto":
        return "auto" if asked == "online" else asked
    return min(configured, asked, key=_PRIVACY.index)


class WandbSink(Sink):
    """Starts dist_train.tracking.wandb and talks to it in JSON lines, both ways."""

    name = "wandb"

    def __init__(self, mode: str, log: Path) -> None:
        self._mode, self._log = mode, log
        self._log_from = log.stat().st_size if log.is_file() else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stdin = self._stdout = -1
        self._facts: RunFacts | None = None
        self._note: Note = lambda line: None
        self._outgoing = bytearray()
        self._incoming = b""
        self._opened = False
        self._is_offline = mode == "offline"
        self._was_waited_for = False
        self._best: Best | None = None

    def begin(self, facts: RunFacts, note: Note) -> None:
        folder = RunDir(facts.run_dir).wandb
        folder.mkdir(parents=True, exist_ok=True)
        self._facts, self._note = facts, note
        self._best = RunState.of(facts.run_dir).best if facts.first_step else None
        self._process, self._stdin, self._stdout = _start(folder / "process.log")
        set_aside(self._process.pid)
        log_from = self._log_from if facts.first_step else 0
        self._send(begin=vars(_begin(facts, self._mode, run_id(folder / "id.txt"), self._log, log_from)))

    def log_steps(self, interval: Interval) -> None:
        row = interval.summary
        values = {**_group("train", row), **{f"train/{key}": row.get(key) for key in POSITION}}
        self._send(log=values | {f"time/{key}": value for key, value in interval.times.items()})

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        assert self._facts is not None
        prefix = base.prefix_of(row.get("split", "evaluation"))
        chart: Panel | None = None
        if confusion is not None:
            cells = base.confusion_cells(confusion, self._facts.classes, MOST_CELLS)
            chart = Panel(key=f"{prefix}/confusion_matrix", columns=CELL, rows=cells)
        self._send(
            log={"train/step": row["step"], **_group(prefix, row)},
            confusion=chart,
            per_class=_per_class(prefix, row, self._facts.classes),
            worst=_worst(prefix, row, self._facts.run_dir),
            texts=row.get("texts", []),
            summary=self._summary(row) if prefix == "eval" else {},
        )

    def _summary(self, row: Row) -> Row:
        """The last figures and the best, as the run's table in W&B shows them."""
        assert self._facts is not None
        config, best = self._facts.config, self._best
        value, sign = row.get(config.best), 1 if config.best_is == "max" else -1
        before = -math.inf if best is None or not math.isfinite(best.value) else sign * best.value
        if isinstance(value, int | float) and math.isfinite(value) and sign * value > before:
            self._best = best = Best(metric=config.best, value=value, step=row["step"])
        return _group("final", row) | _of_the_best(best)

    def log_checkpoint(self, path: Path, row: Row, *, is_best: bool) -> None:
        assert self._facts is not None
        wanted = self._facts.config.tracking.wandb.artifacts
        if wanted == "all" or (wanted == "best" and is_best):
            aliases = [f"step-{row['step']}", *(["best"] * is_best)]
            self._send(checkpoint={"path": str(path.absolute()), "aliases": aliases, "metadata": row})

    def log_own(self, own: Own) -> None:
        values = {f"{own.key}/{name}": value for name, value in own.values.items()}
        pictures = {f"{own.key}/{name}": str(path.absolute()) for name, (path, _) in own.pictures.items()}
        self._send(log={"train/step": own.position["step"], **values}, pictures=pictures)

    def finish(self, outcome: SessionOutcome) -> None:
        summary = _group("final", outcome.metrics) | _of_the_best(outcome.best)
        self._send(summary={**summary, "status": outcome.status}, finish=int(outcome.status == "failed"))
        if self._ends_within(SILENT_S):
            return
        self._was_waited_for = True
        if self._is_offline:
            self._note(f"wandb  still writing, {LOCAL_TIMEOUT_S[outcome.status]:.0f} s more at most")
        else:
            timeout_s = min(UPLOAD_TIMEOUT_S[outcome.status], math.inf if self._opened else OPEN_TIMEOUT_S)
            doing = "uploading" if self._opened else "connecting"
            self._note(f"wandb  still {doing}, {timeout_s - SILENT_S:.0f} s more at most")
            if self._ends_within(timeout_s - SILENT_S):
                return
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)
        if not self._ends_within(LOCAL_TIMEOUT_S[outcome.status]):
            raise RuntimeError("it did not end in time")

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        try:  # its input is closed, which ends it, unless it was waited for and did not
            process.wait(0 if self._was_waited_for else CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, **message: Any) -> None:
        if self._process is None:
            return
        self._outgoing += json.dumps(message, default=_plain).encode() + b"\n"
        self._talk()
        if len(self._outgoing) > MOST_WAITING:
            raise RuntimeError("it has stopped taking data")

    def _talk(self) -> None:
        """Writes what the process takes, and passes on what it reports. Raises RuntimeError when it ended without being
        asked to."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # what it reports says why it broke
            while self._outgoing:
                del self._outgoing[: os.write(self._stdin, self._outgoing)]
        with contextlib.suppress(BlockingIOError):
            while self._process is not None:
                chunk = os.read(self._stdout, 65536)
                if not chunk:
                    raise RuntimeError("its process ended; the reason is in wandb/process.log")
                *lines, self._incoming = (self._incoming + chunk).split(b"\n")
                for message in map(json.loads, lines):
                    self._is_offline |= "offline" in message
                    if "note" in message:
                        self._opened = True
                        self._note(message["note"])
                    if "error" in message:
                        raise RuntimeError(message["error"])
                    if message.get("over"):
                        self.close()

    def _ends_within(self, limit_s: float) -> bool:
        """Writes what is left and waits for the process to report that it has ended."""
        deadline = time.monotonic() + limit_s
        while self._process is not None and (left := deadline - time.monotonic()) > 0:
            select.select([self._stdout], [self._stdin] if self._outgoing else [], [], left)
            self._talk()
        return self._process is None


def run_id(path: Path) -> str:
    """The W&B id of this run directory: WANDB_RUN_ID, or a new one. It is kept, so that W&B sees one run."""
    with contextlib.suppress(FileNotFoundError):
        found = read_bytes(path, MOST_OF_ID, links=False).decode().strip()
        if found:
            return found
    made = os.environ.get("WANDB_RUN_ID") or "".join(
        secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8)
    )
    write_atomic(path, f"{made}\n")
    return made


def _begin(facts: RunFacts, mode: str, identity: str, log: Path, log_from: int) -> Begin:
    ours = facts.config.tracking.wandb.model_dump(exclude={"mode", "artifacts"})
    found = {field.name: getattr(facts, field.name) for field in fields(facts) if field.name not in NOT_SENT}
    config = {**facts.config.model_dump(mode="json"), "facts": found}
    name, folder = f"{facts.name}-{facts.run_dir.name}", str(facts.run_dir.absolute())
    return Begin(
        mode=mode,
        given={"id": identity, "config": config} | {key: ours[key] for key in ours if ours[key] not in (None, [])},
        defaults={"name": name, "project": PROJECT, "dir": folder},
        data_dir=str(RunDir(facts.run_dir).wandb.absolute()),
        code=_code(facts.run_dir),
        argv=sys.argv,
        training_pid=os.getpid(),
        log=str(log.absolute()),
        log_from=log_from,
    )


def _code(run_dir: Path) -> dict[str, str]:
    """The config, and every module that was loaded from the working folder: by the name that it is kept under."""
    here, ours = Path.cwd(), {"dist_train", "launch"}
    found = {"config.yaml": RunDir(run_dir).config}
    for name, module in list(sys.modules.items()):
        path = Path((isinstance(module, ModuleType) and vars(module).get("__file__")) or "/")
        theirs = name.partition(".")[0] not in ours and "site-packages" not in path.parts
        if theirs and path.suffix == ".py" and path.is_relative_to(here):
            found[str(path.relative_to(here))] = path
    return {name: str(path.absolute()) for name, path in found.items()}


def _per_class(prefix: str, row: Row, classes: tuple[str, ...] | None) -> Panel | None:
    columns = {name: column for name, column in (row.get("per_class") or {}).items() if isinstance(column, Sequence)}
    if not columns:
        return None
    count = max(map(len, columns.values()))
    names = classes if classes and len(classes) == count else tuple(map(str, range(count)))
    rows = [list(one) for one in zip(names, *columns.values(), strict=False)][:MOST_CELLS]
    return {"key": f"{prefix}/per_class", "columns": ["class", *columns], "rows": rows}


def _worst(prefix: str, row: Row, run_dir: Path) -> Panel | None:
    if not row.get("worst"):
        return None
    columns = ["name", "truth", "prediction", "probability", "loss", "text", "index"]
    pictures = [str((run_dir / one["picture"]).absolute()) if one.get("picture") else None for one in row["worst"]]
    rows = [[picture, *map(one.get, columns)] for picture, one in zip(pictures, row["worst"], strict=True)]
    return {"key": f"{prefix}/worst", "columns": ["picture", *columns], "rows": rows}


def _group(prefix: str, row: Row) -> Row:
    return {f"{prefix}/{key}": value for key, value in telling(row).items()}


def _of_the_best(best: Best | None) -> Row:
    return {} if best is None else {f"best/{best.metric}": best.value, "best/step": best.step}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _start(log: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, and where to write to it and to read from it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until it can answer it
    pipe = subprocess.PIPE
    with os.fdopen(open_to_append(log), "ab") as chatter:
        process = begin_process("dist_train.tracking.wandb", stdin=pipe, stdout=pipe, stderr=chatter, bufsize=0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdin is not None and process.stdout is not None
    pipes = process.stdin.fileno(), process.stdout.fileno()
    for pipe in pipes:
        os.set_blocking(pipe, False)
    return process, *pipes
