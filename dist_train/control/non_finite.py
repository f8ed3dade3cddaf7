"""What becomes of a step whose loss or gradient is not finite. All ranks decide alike, and no such state is ever saved.

The decision is part of the result: whether an update was left out depends on the config and the samples alone. So a
rollback goes to the last checkpoint that was due, not to one that a signal happened to ask for.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dist_train.checkpoint.state import TrainState
from dist_train.config.schema import RunConfig
from dist_train.errors import ExitCode, UserError
from dist_train.parallel.process_group import ProcessGroup

MOST_IN_A_ROW = 10
"""Steps that may be left out one after another: a training that has diverged does not come back by itself."""
ADVICE = "Try a smaller optimizer.lr, a longer schedule.warmup, or train.clip_norm"


class NonFinite(Protocol):
    """A policy, `train.non_finite`."""

    def applies(self, norm: Tensor, losses: Mapping[int, Tensor]) -> bool:
        """Whether the step's update is to be applied: the same answer on every rank, which all call it together."""

    def leave_out(self, state: TrainState) -> None:
        """Puts model and optimizer where they are to be after a step that is left out."""


class Stop:
    """Ends the training; seen when the interval's metrics are read, so that no step waits for it."""

    def applies(self, norm: Tensor, losses: Mapping[int, Tensor]) -> bool:
        return True

    def leave_out(self, state: TrainState) -> None:
        raise AssertionError("every update is applied")


class Skip:
    """Leaves the update out. Costs a reduction of one number each step.

    Args:
        infinite_norm_is_fine: True where a gradient scaler skips steps whose gradient overflows by itself.
        put_back: restores the model's buffers.
    """

    def __init__(self, group: ProcessGroup, put_back: Callable[[], None], *, infinite_norm_is_fine: bool) -> None:
        self._group = group
        self._put_back = put_back
        self._infinite_norm_is_fine = infinite_norm_is_fine

    def applies(self, norm: Tensor, losses: Mapping[int, Tensor]) -> bool:
        values = torch.stack([loss.float() for loss in losses.values()])
        bad = ~torch.isfinite(values).all()
        if not self._infinite_norm_is_fine:
            bad |= ~torch.isfinite(norm)
        return int(self._group.sum_(bad.to("cpu", torch.int64))) == 0

    def leave_out(self, state: TrainState) -> None:
        """Raises UserError (exit 11) after too many in a row."""
        if state.left_out_in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"step {state.step + 1}: the loss or gradient is not finite, after {MOST_IN_A_ROW} such steps in a row "
                f"were left out. {ADVICE}",
                ExitCode.NON_FINITE,
            )
        self._put_back()


class Rollback(Skip):
    """Leaves the update out, and takes back those since the last checkpoint that was due. Their samples are not seen
    again: the training goes on with the next step's.

    Args:
        go_back: puts back model, optimizer, average and scaler as they were after that many steps.
        anchor: the last step at which a checkpoint was due, from the number of steps done.
    """

    def __init__(
        self,
        group: ProcessGroup,
        put_back: Callable[[], None],
        *,
        infinite_norm_is_fine: bool,
        go_back: Callable[[int], None],
        anchor: Callable[[int], int],
    ) -> None:
        super().__init__(group, put_back, infinite_norm_is_fine=infinite_norm_is_fine)
        self._go_back = go_back
        self._anchor = anchor

    def leave_out(self, state: TrainState) -> None:
        """Raises UserError: (exit 11) after too many in a row, (exit 4) when the checkpoint is not there."""
        super().leave_out(state)
        if (step := self._anchor(state.step)) < state.step:
            self._go_back(step)


def build(
    config: RunConfig,
    group: ProcessGroup,
    put_back: Callable[[], None],
    go_back: Callable[[int], None],
    anchor: Callable[[int], int],
) -> NonFinite:
    """The policy that the config asks for."""
    fine = config.train.precision == "fp16"
    if config.train.non_finite == "rollback":
        return Rollback(group, put_back, infinite_norm_is_fine=fine, go_back=go_back, anchor=anchor)
    return Skip(group, put_back, infinite_norm_is_fine=fine) if config.train.non_finite == "skip" else Stop()
