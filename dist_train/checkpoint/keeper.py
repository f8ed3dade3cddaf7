"""When a save fails, what is kept, and that only rank 0 writes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.checkpoint.store import CheckpointStore
from dist_train.config.errors import ExitCode, UserError

MOST_FAILURES = 3


class Keeper(Protocol):
    """What the loop sees."""

    last: Path | None

    def save(self, state: TrainState) -> None: ...

    def drain(self) -> None: ...

    def close(self) -> None: ...


class NoCheckpoints:
    """The ranks that do not write: their state is the same."""

    last: Path | None = None

    def save(self, state: TrainState) -> None:
        pass

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class Checkpoints:
    """Rank 0's checkpoints. A disk that refuses does not end the training until it has refused three times in a row.

    Args:
        capture: copies everything that survives a restart.
        facts: for the manifest: the run's sizes and versions.
        note: tells the user one line.
        on_saved: called with each state that is safely on disk.
    """

    def __init__(
        self,
        store: CheckpointStore,
        capture: Callable[[TrainState], Snapshot],
        facts: Mapping[str, Any],
        note: Callable[[str], None],
        on_saved: Callable[[TrainState], None],
    ) -> None:
        self._store = store
        self._capture = capture
        self._facts = facts
        self._note = note
        self._on_saved = on_saved
        self._failures: list[str] = []
        self.last: Path | None = None

    def save(self, state: TrainState) -> None:
        """Writes one checkpoint; returns when it is durable, or has failed and left the older ones as they were.

        Raises:
            UserError: (exit 14) when this was the third failure in a row.
        """
        facts = {
            **self._facts,
            "samples_seen": state.samples_seen(self._facts["global_batch"]),
            "best_step": state.best_step,
            "metrics": state.metrics,
        }
        files = self._capture(state).files()
        try:
            self.last = self._store.save(state.step, files, facts)
            self._failures.clear()
            self._store.retain(state.best_step)
        except OSError as error:
            self._failures.append(f"step {state.step}: {error.strerror or error}")
            self._note(
                f"step {state.step} not saved ({error.strerror}: {error.filename or self._store.folder}); "
                "training goes on, the older checkpoints are intact"
            )
            if len(self._failures) >= MOST_FAILURES:
                self.close()
        else:
            self._on_saved(state)

    def drain(self) -> None:
        """Returns when no save is under way."""

    def close(self) -> None:
        """The end of the training.

        Raises:
            UserError: (exit 14) when the last save failed.
        """
        if self._failures:
            raise UserError(
                f"{self._store.folder}: the last {len(self._failures)} saves failed ({'; '.join(self._failures)}). "
                "Make room or mend the disk, then go on with --resume",
                ExitCode.CHECKPOINT_IO,
            )
