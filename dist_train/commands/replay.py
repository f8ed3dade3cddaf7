"""`dist-train replay`: do the recorded steps come out again?

A replay runs the training's own loop from the nearest earlier checkpoint, on any number of ranks, with a tracker that
compares instead of writing. Nothing is written into the run directory.
"""

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dist_train.checkpoint.manager import NullCheckpointManager
from dist_train.checkpoint.manifest import DamagedCheckpoint
from dist_train.checkpoint.provenance import surroundings
from dist_train.checkpoint.resume import broadcast_checkpoint
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.checkpoint.store import VerifiedCheckpoint
from dist_train.commands.common import reporting
from dist_train.commands.recording import Recording, ReplayComparison, count, read_recording
from dist_train.commands.watch import StepDetail, watched
from dist_train.config.requests import ReplayRequest, read_request
from dist_train.config.schema import RunConfig
from dist_train.config.shares import share
from dist_train.config.stdout import tell
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.stop import StopFlag
from dist_train.data import datasets
from dist_train.data.datasets import Splits
from dist_train.data.loader import train_sampler
from dist_train.errors import ExitCode, ResumeError, UserError
from dist_train.learner import Learner, build_learner
from dist_train.loop import train
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.files import write_atomic
from dist_train.tracking.jsonl import row_to_json
from dist_train.tracking.tracker import NullTracker
from dist_train.trained import config_of_run
from dist_train.trainer import Trainer
from dist_train.worker import set_deterministic

DIFFERS = 1
"""Exit code when a step differs from what was recorded."""


def main(request: ReplayRequest) -> int:
    """Replays the steps; returns the exit code."""
    with reporting():
        try:
            outcome = _replay(request)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
    if not Ranks.from_environment().is_first:
        return ExitCode.DONE
    tell(row_to_json({"run": str(Path(request.run)), **outcome.as_json()}) if request.as_json else outcome.as_text())
    code = ExitCode.DONE if outcome.is_identical else DIFFERS
    if request.outcome is None:
        return code
    write_atomic(Path(request.outcome), json.dumps({"exit_code": code}))
    return ExitCode.DONE


@dataclass(frozen=True, kw_only=True)
class ReplayOutcome:
    """The result of a replay; complete on rank 0 only.

    Attributes:
        ended: why the replay stopped before its last step: something was not finite.
        details: the steps shown with --show.
    """

    recording: Recording
    comparison: ReplayComparison
    ranks: Ranks
    ended: str | None
    details: list[StepDetail]

    @property
    def is_identical(self) -> bool:
        return self.comparison.difference is None and not self.comparison.missing

    @property
    def not_recorded(self) -> list[int]:
        record = self.recording
        return [step for step in range(record.first, record.last + 1) if step not in record.steps]

    def as_text(self) -> str:
        """The verdict, in a few lines."""
        record, compared = self.recording, self.comparison
        lines = [self.ended] if self.ended else []
        if compared.difference:
            lines.append(f"not bit-identical: {compared.difference}")
        elif compared.missing:
            lines.append(f"not bit-identical: step {min(compared.missing)} was recorded and did not come out")
        elif compared.steps == 0:
            return "\n".join([*lines, "nothing to compare: none of these steps is recorded"])
        else:
            lines.append(f"bit-identical: {compared.summary()}, on {count(self.ranks.world_size, 'rank')}")
        if compared.difference and compared.difference.step < record.first:
            lines.append(f"(before step {record.first}: on the way there from {record.begin})")
        if self.not_recorded:
            lines.append(f"not recorded, so not compared: step {', '.join(map(str, self.not_recorded))}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        record, compared = self.recording, self.comparison
        steps = {"steps": [asdict(detail) for detail in self.details]} if self.details else {}
        return {
            "from_step": record.first,
            "to_step": record.last,
            "replayed_from_step": record.begin_step,
            "ranks": self.ranks.world_size,
            "identical": self.is_identical,
            "not_recorded": self.not_recorded,
            "compared": {"steps": compared.steps, "evaluations": compared.evaluations, "values": compared.values},
            "first_difference": compared.difference.as_json() if compared.difference else None,
            "ended": self.ended,
            "notes": list(record.notes),
            **steps,
        }


# ---------------------------------------------------------------- the replay


def _replay(request: ReplayRequest) -> ReplayOutcome:
    config = config_of_run(Path(request.run), trusts=request.trust)
    ranks, microbatches = Ranks.from_environment(), config.batch.microbatches
    if not isinstance(microbatches, int):
        raise UserError(f"{request.run} has not settled batch.microbatches, as a run does when it begins")
    share(ranks.rank, ranks.world_size, microbatches)  # raises if there are too few
    set_deterministic(config)
    with ProcessGroup(ranks, config.distributed) as group:
        splits = datasets.build_all(config, group.local_rank0_first)
        due = Due.of(config, train_sampler(config, splits.train, ranks).steps_per_epoch)
        recording = group.run_on_rank0(
            lambda: read_recording(request, config, due, surroundings(config, splits, group.device), ranks.world_size)
        )
        if ranks.is_first:
            doing = f"replaying from {recording.begin} on {count(ranks.world_size, 'rank')}"
            print(*recording.notes, doing, sep="\n", file=sys.stderr, flush=True)
        window = {**asdict(due), "last_step": recording.last, "evaluations": frozenset(recording.evaluations)}
        return _compute(request, config, splits, recording, Window(**window), group)


def _compute(
    request: ReplayRequest, config: RunConfig, splits: Splits, recording: Recording, due: Due, group: ProcessGroup
) -> ReplayOutcome:
    found, flag = recording.found, StopFlag()
    learner = build_learner(config, splits, group.device, starts=found is None)
    state = learner.restore(_broadcast(found, group), found.path) if found else TrainState()
    state.finished = False
    # All ranks stop by agreement once rank 0 has seen a difference, unless the later steps are to be shown too.
    comparison = ReplayComparison(recording, on_difference=(lambda: None) if request.show else partial(flag.limit, 0))
    tracker = comparison if group.ranks.is_first else NullTracker()
    details: list[StepDetail] = []
    points = RollbackPoints(learner, due) if config.train.non_finite == "rollback" else NullCheckpointManager()
    trainer = Trainer(config, group, splits, learner, due, Agreement(group, flag), tracker, points)
    ended = None
    try:
        points.save(state)
        if request.show:
            trainer = watched(trainer, recording.first, details.append if request.as_json else print)
        train(trainer, state)
    except UserError as error:
        if error.code != ExitCode.NON_FINITE:
            raise
        ended = str(error)
    finally:
        trainer.parallel.close()
    return ReplayOutcome(recording=recording, comparison=comparison, ranks=group.ranks, ended=ended, details=details)


def _broadcast(found: VerifiedCheckpoint, group: ProcessGroup) -> Snapshot:
    try:
        return broadcast_checkpoint(found, group)
    except (OSError, DamagedCheckpoint) as error:
        raise ResumeError(
            f"{found.path.name} went away while it was read ({error}), as it happens in a run that is going on: "
            "try again"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Window(Due):
    """The recorded part of the run's own plan: ends with the window, evaluates at the recorded evaluations."""

    evaluations: frozenset[int]

    def evaluate(self, step: int) -> bool:
        return step in self.evaluations


class RollbackPoints(NullCheckpointManager):
    """Keeps the states that a rollback restores in memory: the run's own checkpoints may be gone."""

    def __init__(self, learner: Learner, due: Due) -> None:
        self._learner = learner
        self._due = due
        self._snapshot: Snapshot | None = None

    def save(self, state: TrainState, *, lacks_evaluation: bool = False) -> None:
        if self._due.rollback_step(state.step) == state.step:
            self._snapshot = self._learner.state_tensors(state).copied()

    def load(self, step: int, group: ProcessGroup) -> Snapshot:
        """What the newest of those steps left, which is `step`."""
        assert self._snapshot is not None
        return self._snapshot


if __name__ == "__main__":
    sys.exit(main(read_request(ReplayRequest, sys.argv[1:])))
