"""Rank 0's saves: copied between two steps, and written in the background where that pays."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dist_train.checkpoint.buffers import Buffers, Part
from dist_train.checkpoint.resume import broadcast_checkpoint
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.checkpoint.store import LACKS_EVALUATION, CheckpointStore, VerifiedCheckpoint, locate
from dist_train.checkpoint.writer import Save, Writer, WriterKilled, WriterLost, save_and_retain
from dist_train.errors import DiskError
from dist_train.parallel.process_group import ProcessGroup

MOST_FAILURES, PATIENCE_S = 3, 60.0
"""The training ends when so many saves in a row have failed, for so many seconds: where saves are frequent, a disk that
is full or away for a moment refuses many."""
PAYS_FROM = 16 * 2**20
"""Bytes from which `auto` writes a state in the background. By benchmarks.checkpoint, on two cores and a local
disk, the foreground takes 17 ms for 4 MB and 120 ms for 40 MB, the background 1 and 6 ms. Its process costs 100 ms of
one core, once; from this size on that is earned by the second save."""
FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 5.0
LAST_SAVE_TIMEOUT_S = 10.0
"""Seconds that a save under way still has when an error ends the training."""


class NullCheckpointManager:
    """What the training asks of its checkpoints. By itself, for a rank that does not write, since its state is the same
    as rank 0's: it saves nothing.

    Attributes:
        last: the newest checkpoint of this session that is safely on disk.
    """

    last: Path | None = None

    def save(self, state: TrainState, *, lacks_evaluation: bool = False) -> None:
        """Saves the state, which may change afterwards. Whether the save went well, `tick`, the next `save`, `drain` or
        `close` may be the first to learn.

        Args:
            lacks_evaluation: the evaluation that is due at this step is still to be done, by whoever goes on from here.

        Raises:
            UserError: (exit 14) when this was the third failure in a row or a later one, a minute after the first;
                (exit 3) when the run is another session's now.
        """

    def load(self, step: int, group: ProcessGroup) -> Snapshot:
        """The checkpoint of `step`, on every rank; all ranks call it together.

        Raises:
            UserError: (exit 4) on every rank, when it is missing or damaged.
        """
        self.drain()
        return broadcast_checkpoint(group.run_on_rank0(lambda: self._verified(step)), group)

    def tick(self) -> None:
        """Looks whether the save under way is done; to be called between two steps. Raises as `save` does."""

    def drain(self) -> None:
        """Returns when no save is under way: it is durable, or has failed. Raises as `save` does."""

    def close(self, *, may_wait: bool = False) -> None:
        """The end of the training: returns when the last save is durable.

        Args:
            may_wait: nobody has asked for a stop, so a disk that refuses the last save has a minute to take it.

        Raises:
            UserError: (exit 14) when the last save failed; else as `save` does.
        """

    def end(self) -> None:
        """The end of this session, whatever brought it: a save under way gets a last chance; never raises."""

    def _verified(self, step: int) -> VerifiedCheckpoint:
        raise AssertionError("rank 0 alone reads")


class CheckpointManager(NullCheckpointManager):
    """Rank 0's checkpoints. A disk that refuses does not end the training until it has refused three times in a row,
    for a minute.

    Args:
        capture: everything that survives a restart; its tensors are copied here.
        facts: for the manifest: the run's sizes and versions.
        note: shows the user one line.
        on_saved: called with each state that is safely on disk.
        also: says which further steps' checkpoints retention keeps, given the step that is saved.
        background: write in a process of its own; `auto`: where the state is large enough to pay.
        write_timeout_s: how long a save in the background may take.
        patience_s: how long a disk may refuse.
    """

    def __init__(
        self,
        store: CheckpointStore,
        capture: Callable[[TrainState], Snapshot],
        facts: Mapping[str, Any],
        note: Callable[[str], None],
        on_saved: Callable[[TrainState], None],
        also: Callable[[int], tuple[int, ...]] = lambda step: (),
        background: bool | Literal["auto"] = "auto",
        write_timeout_s: float = 900.0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store, self._capture, self._facts, self._note = store, capture, facts, note
        self._on_saved, self._also = on_saved, also
        self._background, self._write_timeout_s, self._patience_s = background, write_timeout_s, patience_s
        self._buffers = Buffers()
        self._writer: Writer | None = None
        self._under_way: tuple[TrainState, Save] | None = None
        self._failures: list[str] = []
        """What went wrong with each save since the last that succeeded."""
        self._refused_since = 0.0
        self._newest: tuple[TrainState, Save] | None = None
        """The newest save, whose copy is there to be written again."""

    def save(self, state: TrainState, *, lacks_evaluation: bool = False) -> None:
        """Waits for the save under way, copies the state, and has it written: in the foreground, and then it returns
        when the save is done, or in the background, and then it returns at once."""
        self.drain()
        state = replace(state)  # the training goes on changing the other one
        self._newest = None
        with self._failure_counted(state):
            save = self._copy(state, {LACKS_EVALUATION: True} if lacks_evaluation else {})
            self._newest = (state, save)
            background = _size(save.parts) >= PAYS_FROM if self._background == "auto" else self._background
            if background and self._begins(save):
                self._under_way = (state, save)
            else:
                self._succeeded(state, self._write(save))

    def tick(self) -> None:
        if self._under_way is not None and self._writer is not None and self._writer.is_done():
            self.drain()

    def drain(self) -> None:
        if self._under_way is None or self._writer is None:
            return
        (state, save), self._under_way = self._under_way, None
        with self._failure_counted(state):
            try:
                path = self._writer.result(self._write_timeout_s)
            except WriterKilled:
                path = self._write(save)
                self._note(f"the process that saves was killed: step {state.step} was saved without it")
            self._succeeded(state, path)

    def close(self, *, may_wait: bool = False) -> None:
        self.drain()
        deadline, pause = time.monotonic() + self._patience_s * may_wait, FIRST_PAUSE_S
        if self._failures and may_wait:
            self._note(f"waiting up to {self._patience_s:g} s for the disk to take the last checkpoint")
        while self._failures and self._newest is not None and time.monotonic() + pause < deadline:
            time.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE_S)
            with suppress(OSError):
                state, save = self._newest
                self._succeeded(state, self._write(save))
        self.end()
        if self._failures:
            told = [*self._failures[:1], *self._failures[1:][1 - MOST_FAILURES :]]
            raise DiskError(
                f"{self._store.folder}: the last {len(self._failures)} saves failed ({'; '.join(told)}). "
                "Make room or mend the disk, then go on with --resume"
            )

    def end(self) -> None:
        self._write_timeout_s = min(self._write_timeout_s, LAST_SAVE_TIMEOUT_S)
        with suppress(Exception):  # the error that ends the training counts for more
            self.drain()
        if self._writer is not None:
            self._writer.end()
        self._writer = None
        self._buffers.close()

    def _verified(self, step: int) -> VerifiedCheckpoint:
        return locate(self._store.path(step), self._note)

    def _copy(self, state: TrainState, facts: Mapping[str, Any]) -> Save:
        snapshot = self._capture(state)
        is_first = not self._buffers.memory
        parts = self._buffers.take(snapshot.tensor_files())
        if is_first and (line := self._store.short_of_room(_size(parts))) is not None:
            self._note(line)
        return Save(
            step=state.step,
            parts=parts,
            others=snapshot.other_files(),
            facts={
                **self._facts,
                **facts,
                "samples_seen": state.samples_seen(self._facts["global_batch"]),
                "best_step": state.best_step,
                "metrics": state.metrics,
            },
            also=self._also(state.step),
        )

    def _write(self, save: Save) -> Path:
        return save_and_retain(save, self._store, self._buffers.memory)

    def _begins(self, save: Save) -> bool:
        """Hands the save to the process that writes; False where that process was killed this very moment."""
        if self._writer is not None and not self._writer.is_alive():
            self._writer.kill()
            self._writer = None
        self._writer = self._writer or Writer(self._store, self._buffers.descriptor)
        with suppress(WriterKilled):
            self._writer.begin(save)
            return True
        return False

    def _succeeded(self, state: TrainState, path: Path) -> None:
        self.last = path
        if self._failures:
            self._note(f"step {state.step} saved: the disk takes checkpoints again")
        self._failures.clear()
        self._on_saved(state)

    @contextmanager
    def _failure_counted(self, state: TrainState) -> Iterator[None]:
        """To be put around what saves `state`. Tells the user of the first failures, and in the end ends the
        training."""
        try:
            yield
        except (OSError, WriterLost) as error:
            reason, place = str(error), ""
            if isinstance(error, OSError):
                reason, place = error.strerror or reason, f": {error.filename or self._store.folder}"
            if not self._failures:
                self._refused_since = time.monotonic()
            self._failures.append(f"step {state.step}: {reason}")
            if len(self._failures) <= MOST_FAILURES:
                said = f"step {state.step} not saved ({reason}{place})"
                self._note(f"{said}; training goes on, the older checkpoints are intact")
            if len(self._failures) >= MOST_FAILURES and time.monotonic() - self._refused_since >= self._patience_s:
                self.close()


def _size(parts: Mapping[str, Part]) -> int:
    return sum(length for _, length in parts.values())
