"""The training loop. It builds nothing: everything that it calls was built by worker.py."""

from collections.abc import Callable, Sequence

from dist_train.checkpoint.state import TrainState
from dist_train.control.stop import Request
from dist_train.data.batch import Microbatch
from dist_train.data.broken import Broken
from dist_train.errors import UserCodeError
from dist_train.learner import autocast
from dist_train.step_metrics import StepResult
from dist_train.trainer import Trainer


def train(trainer: Trainer, state: TrainState, first_step_done: Callable[[], None] = lambda: None) -> Request:
    """Trains from `state` to the last step, or until asked to stop. Changes `state`; returns what was asked."""
    request, first = Request.NONE, state.step + 1
    for microbatches in trainer.batches(state.step, trainer.due.last_step):
        trainer.step_metrics.add(train_step(trainer, state, microbatches))
        state.step += 1
        if state.step == first:
            first_step_done()
        trainer.tracker.tick(state.step)
        trainer.checkpoints.tick()
        request = trainer.agreement.next()
        if trainer.due.log(state.step) or request:
            trainer.report(state)
        if trainer.due.evaluate(state.step):
            request = max(request, trainer.evaluate(state))
        if trainer.due.save(state.step) or request or state.best_step == state.step or state.finished:
            trainer.save(state)
        if request.stops or state.finished:
            break
    if not request.stops and not state.finished and state.step < trainer.due.last_step:
        raise UserCodeError(
            f"the training data ended at step {state.step}, and the training goes on to step {trainer.due.last_step}"
        )
    return max(request, trainer.agreement.close())


def train_step(trainer: Trainer, state: TrainState, microbatches: Sequence[Microbatch]) -> StepResult:
    """One optimizer step over this rank's share of a global batch, the one after `state.step`."""
    learner, lr = trainer.learner, trainer.schedule.lr(state.step)
    learner.optimizer.zero_grad(set_to_none=True)
    losses, counts, indices, figures = {}, {}, {}, {}
    broken: list[Broken] = []
    counted = not learner.task.counts_every_sample
    known = learner.task.targets_per_sample
    for microbatch in trainer.parallel.each(microbatches):
        with autocast(trainer.config, trainer.group.device):
            loss = learner.task.step(trainer.parallel, microbatch)
        if counted and known is None:
            trainer.parallel.count(loss.count)
        factor = trainer.parallel.loss_scale / trainer.config.batch.microbatch_size
        learner.scaler.scale(trainer.parallel.complete(loss.total) * factor).backward()
        losses[microbatch.number], counts[microbatch.number] = loss.total.detach(), loss.count
        figures[microbatch.number] = loss.figures
        indices[microbatch.number] = microbatch.indices
        broken += microbatch.broken
    if counted:
        trainer.parallel.rescale(trainer.config.batch.global_size, known)
    norm, applied = trainer.update(state, lr, losses)
    return StepResult(
        step=state.step + 1,
        losses=losses,
        counts=counts,
        figures=figures,
        indices=indices,
        broken=tuple(broken),
        gradient_norm=norm,
        lr=lr,
        applied=applied,
    )
