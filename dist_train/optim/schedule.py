"""The learning rate as a pure function of the step. No torch here: the launcher draws the curve with it.

Steps count from 0, so a training of T steps uses lr(0) to lr(T - 1). With a warm-up of w steps the rate is
peak·(t + 1)/(w + 1) before step w and reaches the peak at step w; what the schedule calls its progress runs from 0 at
step w to 1 at step T, as in torch's own schedulers.
"""

import math
from dataclasses import dataclass

from dist_train.config.schema import Constant, Cosine, OneCycle, Polynomial, RunConfig, ScheduleConfig, Step


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule laid out over one training.

    Attributes:
        config: the section `schedule`.
        peak: the highest learning rate, `optimizer.lr`.
        total_steps: of the whole training, whatever ends it earlier.
        steps_per_epoch: to count warm-up and milestones given in epochs.
        global_batch: to count those given in samples.
    """

    config: ScheduleConfig
    peak: float
    total_steps: int
    steps_per_epoch: int
    global_batch: int

    @classmethod
    def of(cls, config: RunConfig, steps_per_epoch: int) -> "Schedule":
        return cls(
            config=config.schedule,
            peak=config.optimizer.lr,
            total_steps=config.train.duration.steps(steps_per_epoch, config.batch.global_size),
            steps_per_epoch=steps_per_epoch,
            global_batch=config.batch.global_size,
        )

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0; from total_steps on it stays at its end."""
        warmth = min((step + 1) / (self.warmup_steps + 1), 1.0)
        return self.peak * warmth * self._shape(step)

    @property
    def warmup_steps(self) -> int:
        """Steps before the one that has the peak learning rate. As many as the training or more: never reached."""
        if isinstance(self.config, OneCycle):
            return 0  # its rise is its warm-up
        return self.config.warmup.steps(self.steps_per_epoch, self.global_batch)

    def progress(self, step: int) -> float:
        """Share of the way from the end of the warm-up to the end of the training, 0 to 1."""
        begin = min(self.warmup_steps, self.total_steps - 1)
        return min(max((step - begin) / (self.total_steps - begin), 0.0), 1.0)

    def _shape(self, step: int) -> float:
        """The share of the peak, before warm-up."""
        match self.config:
            case Cosine() as config:
                return _anneal(1.0, config.final, self.progress(step))
            case OneCycle() as config:  # as torch's: the peak at step rise·T - 1, the end at step T - 1, the last one
                top, last = config.rise * self.total_steps - 1, self.total_steps - 1
                if step < top:
                    return _anneal(config.start, 1.0, step / top)
                return _anneal(1.0, config.final, min((step - top) / (last - top), 1.0))
            case Step() as config:
                at = (milestone.steps(self.steps_per_epoch, self.global_batch) for milestone in config.milestones)
                return config.gamma ** sum(step >= milestone for milestone in at)
            case Polynomial() as config:
                return config.final + (1 - config.final) * (1 - self.progress(step)) ** config.power
            case Constant():
                return 1.0


def _anneal(begin: float, end: float, progress: float) -> float:
    """Half a cosine from begin to end."""
    return end + (begin - end) * (1 + math.cos(math.pi * progress)) / 2
