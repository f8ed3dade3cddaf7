"""Callbacks for the tests of them."""

import random

import numpy as np
import torch


class Watch:
    """Draws from every generator, logs all kinds of things, and leaves everything in another mode."""

    def __init__(self, also=None):
        self._also = also

    def on_start(self, step, figures, log, model):
        model.train()
        log("begins", step)

    def on_step(self, step, figures, log, model):
        assert not model.training and not torch.is_grad_enabled()
        if self._also is not None:
            ALSO[self._also](model, log)
        torch.set_grad_enabled(True)
        log("draws", random.random() + np.random.rand() + float(torch.rand(1)))
        log("loss", torch.tensor(figures["loss"], dtype=torch.float64))
        model(torch.rand(4, 1, 8, 8))

    def on_evaluation(self, step, figures, log, split, **others):
        log("words", f"{split} {figures['accuracy']:.3f}")
        log("square", np.full((5, 6, 3), step, np.uint8))
        log("noise/tensor", torch.rand(1, 5, 6))

    def on_checkpoint(self, step, path, log):
        log("is_there", float(path.is_dir()))

    def on_end(self, status, log):
        log("status", status)


class Everywhere:
    every_rank = True

    def on_step(self, rank, step, log):
        torch.rand(1 + rank)
        log("rank", rank)


def halve(model, log):
    next(model.parameters()).data.mul_(0.5)


def hook(model, log):
    model.register_forward_hook(lambda *_: None)


def count(model, log):
    next(buffer for buffer in model.buffers() if buffer.is_floating_point()).add_(1)


def threads(model, log):
    torch.set_num_threads(3)


def divide(model, log):
    return 1 / 0  # LINE


def leave(model, log):
    raise SystemExit("enough")


def long(model, log):
    log("picture", torch.zeros(7, 5, 6))


def upwards(model, log):
    log("../../up", 1)


ALSO = {one.__name__: one for one in (halve, hook, count, threads, divide, leave, long, upwards)}


class Misspelt:
    def on_steps(self, step):
        pass


class Wrong:
    def on_step(self, stp, log):
        pass


class Late:
    async def on_step(self, step):
        pass


class Nothing:
    pass
