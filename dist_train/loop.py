"""The training loop. It builds nothing: everything in `run` was built by worker.py."""

from collections.abc import Sequence

from dist_train.checkpoint.state import TrainState
from dist_train.control.stop import Request
from dist_train.data.batch import Microbatch
from dist_train.meter import StepResult
from dist_train.run import Run


def train(run: Run, state: TrainState) -> Request:
    """Trains from `state` to the last step, or until asked to stop. Changes `state`; returns what was asked."""
    request = Request.NONE
    for microbatches in run.batches(state.step, run.due.last_step):
        run.meter.add(train_step(run, state.step, microbatches))
        state.step += 1
        run.tracker.tick(state.step)
        request = run.agreement.next()
        if run.due.log(state.step) or request:
            run.tracker.log_steps(run.meter.flush())
        if run.due.evaluate(state.step):
            run.evaluate(state)
        if run.due.save(state.step) or request or state.best_step == state.step or state.finished:
            run.checkpoints.save(state)
        if request.stops or state.finished:
            break
    return max(request, run.agreement.close())


def train_step(run: Run, step: int, microbatches: Sequence[Microbatch]) -> StepResult:
    """One optimizer step over this rank's share of a global batch; `step` counts from 0."""
    lr = run.schedule.lr(step)
    run.optimizer.zero_grad(set_to_none=True)
    losses, counts = {}, {}
    for microbatch, factor in run.parallel.each(microbatches):
        with run.autocast():
            output = run.parallel(microbatch.inputs)
            loss, count = run.task.loss(output, microbatch.targets)
        run.scaler.scale(loss * (factor / run.microbatch_size)).backward()
        losses[microbatch.number], counts[microbatch.number] = loss.detach(), count
    run.normalise(counts)
    norm = run.update(lr)
    return StepResult(step=step + 1, losses=losses, counts=counts, gradient_norm=norm, lr=lr)
