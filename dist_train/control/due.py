"""Is it due? Pure functions of the step, so every rank gives the same answer."""

from dataclasses import dataclass

from dist_train.config.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Due:
    """Intervals in steps, and the steps at which the training and this session of it end."""

    log_every: int
    evaluate_every: int
    save_every: int
    steps_per_epoch: int
    total_steps: int
    last_step: int

    @classmethod
    def of(cls, config: RunConfig, steps_per_epoch: int) -> "Due":
        size = (steps_per_epoch, config.batch.global_size)
        total = config.train.duration.steps(*size)
        bound = config.train.stop_after
        return cls(
            log_every=config.tracking.every.steps(*size),
            evaluate_every=config.eval.every.steps(*size),
            save_every=config.checkpoint.every.steps(*size),
            steps_per_epoch=steps_per_epoch,
            total_steps=total,
            last_step=total if bound is None or bound.is_time else min(total, bound.steps(*size)),
        )

    def evaluate(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.total_steps

    def save(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.last_step

    def rollback_step(self, step: int) -> int:
        """The last step up to `step` that is saved in every run of this config, however often it is stopped."""
        return step - step % self.save_every

    def tell(self, step: int) -> bool:
        """Whether callbacks are told of the step: the same steps however often a run is stopped."""
        return step % self.log_every == 0 or step == self.total_steps

    def log(self, step: int) -> bool:
        """Metrics are written down before anything that a restart could go back to."""
        return step % self.log_every == 0 or self.evaluate(step) or self.save(step)
