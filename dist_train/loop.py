"""The training loop. It builds nothing: everything in `run` was built by worker.py."""

from collections.abc import Callable, Sequence

from dist_train.checkpoint.state import TrainState
from dist_train.control.stop import Request
from dist_train.data.batch import Microbatch
from dist_train.errors import ExitCode, UserError
from dist_train.step_metrics import StepResult
from dist_train.trainer import Run


def train(run: Run, state: TrainState, begun: Callable[[], None] = lambda: None) -> Request:
    """Trains from `state` to the last step, or until asked to stop. Changes `state`; returns what was asked.

    Args:
        begun: called after the first step.
    """
    request, first = Request.NONE, state.step + 1
    for microbatches in run.batches(state.step, run.due.last_step):
        run.meter.add(train_step(run, state, microbatches))
        state.step += 1
        if state.step == first:
            begun()
        run.tracker.tick(state.step)
        run.checkpoints.tick()
        request = run.agreement.next()
        if run.due.log(state.step) or request:
            run.report()
        if run.due.evaluate(state.step):
            run.evaluate(state)
        if run.due.save(state.step) or request or state.best_step == state.step or state.finished:
            run.save(state)
        if request.stops or state.finished:
            break
    if not request.stops and not state.finished and state.step < run.due.last_step:
        raise UserError(
            f"the training data ended at step {state.step}, and the training goes on to step {run.due.last_step}",
            ExitCode.USER_CODE,
        )
    return max(request, run.agreement.close())


def train_step(run: Run, state: TrainState, microbatches: Sequence[Microbatch]) -> StepResult:
    """One optimizer step over this rank's share of a global batch, the one after `state.step`."""
    lr = run.schedule.lr(state.step)
    run.optimizer.zero_grad(set_to_none=True)
    losses, counts, indices = {}, {}, {}
    for microbatch, factor in run.parallel.each(microbatches):
        with run.autocast():
            output = run.parallel(microbatch.inputs)
            loss, count = run.task.loss(output, microbatch.targets)
        run.scaler.scale(loss * (factor / run.microbatch_size)).backward()
        losses[microbatch.number], counts[microbatch.number] = loss.detach(), count
        indices[microbatch.number] = microbatch.indices
    run.normalise(counts)
    norm, applied = run.update(state, lr, losses)
    return StepResult(
        step=state.step + 1,
        losses=losses,
        counts=counts,
        indices=indices,
        gradient_norm=norm,
        lr=lr,
        applied=applied,
    )
