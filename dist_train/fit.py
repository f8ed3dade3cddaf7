"""`batch.microbatches: fit`: the fewest microbatches whose step fits into memory, found before the first step.

Real steps are tried, of a replica that is thrown away, with the run's own model, samples, loss, optimizer, exchange and
loading processes, on all ranks at the same time. They begin with the smallest microbatches and grow: memory is close to
affine in a microbatch's size, so two sizes foretell a third, and none is tried that is not foretold to fit. The rank
with the least room decides. From then on the number is part of the run, as if it had been given.
"""

import ctypes
import gc
import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_train.checkpoint.manager import NullCheckpointManager
from dist_train.checkpoint.state import TrainState
from dist_train.config.schema import RunConfig
from dist_train.config.shares import microbatch_choices, settled, share
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.stop import StopFlag
from dist_train.data.datasets import Splits
from dist_train.data.loader import train_sampler
from dist_train.heartbeat import beat
from dist_train.learner import Learner, build_learner
from dist_train.loop import train_step
from dist_train.memory import scarcest, status_of
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.tree import BinaryCounter, cover
from dist_train.tracking.tracker import NullTracker
from dist_train.trainer import Trainer

_STEPS = 3
"""Of one size: the first sends the whole model in one bucket and makes the optimizer's state, the second makes new
buckets, the third is like all later ones."""
_RESERVE, _LEAST_RESERVE = 0.06, 128 * 2**20
"""What is left free, of all memory, and in bytes: for what grows slowly, and for the processes that come later."""
_GROWTH = 4
"""The largest step from one size to the next that is foretold by it."""


def trial_config(config: RunConfig, world_size: int) -> RunConfig:
    """With small microbatches, for the sanity check: of two samples, since some models cannot learn from one."""
    found = [parts for parts in microbatch_choices(config, world_size) if config.batch.global_size >= 2 * parts]
    return settled(config, found[-1] if found else microbatch_choices(config, world_size)[-1])


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one size was measured to take; in bytes.

    Attributes:
        size: samples of a microbatch.
        loads: of each rank, its need as a share of its room.
        fixed: of each rank, the part of its load that does not depend on the size: what it holds between two steps.
        used: of the node or device with the least room, all that is used at the peak.
        limit: of the same.
    """

    size: int
    loads: list[float]
    fixed: list[float]
    used: float
    limit: float

    @property
    def load(self) -> float:
        return max(self.loads)


def fit_microbatches(config: RunConfig, splits: Splits, group: ProcessGroup) -> tuple[RunConfig, str]:
    """The config with its number of microbatches settled, and a line that says so; the same on every rank."""
    size = config.batch.global_size
    parts = microbatch_choices(config, group.ranks.world_size)[::-1]  # the smallest microbatches first
    sizes = [size // count for count in parts]
    meter, needs = Meter(group), list[Need]()
    chosen, place, bound = 0, 0, len(parts)
    while place < bound:
        try:
            if not needs:  # the very first steps take more, once: libraries set themselves up
                _measured(settled(config, parts[place]), splits, group, meter)
                meter = Meter(group)
            needs.append(_measured(settled(config, parts[place]), splits, group, meter))
        except ValueError:
            if sizes[place] > 1 or len(parts) == 1:
                raise
            place += 1  # BatchNorm takes no mean of one number
            chosen = place
            continue
        if needs[-1].load > 1:
            bound = place
        else:
            chosen = place
        needs.sort(key=lambda need: need.size)
        place = _next(sizes, chosen, bound, needs)
    _give_back(group.device)  # loading processes are forked from here, and would keep what is free
    found = next(need for need in needs if need.size == sizes[chosen])
    line = f"fit: {parts[chosen]:,} microbatches of {sizes[chosen]:,}: {_gb(found.used)} of {_gb(found.limit)}"
    if found.load > 1:
        line = f"! {line}, which leaves less than training should have to spare: smaller ones there are none"
    return settled(config, parts[chosen]), line


def _next(sizes: Sequence[int], chosen: int, bound: int, needs: Sequence[Need]) -> int:
    """The place of the largest size above the chosen one that is foretold to fit; `bound` where there is none."""
    if needs[0].load > 1:
        return bound
    fitting = [place for place in range(chosen + 1, bound) if _foretold(sizes[place], needs) <= 1]
    near = [place for place in fitting if sizes[place] <= _GROWTH * sizes[chosen]]
    return (near or fitting[:1] or [bound])[-1]


def _foretold(size: int, needs: Sequence[Need]) -> float:
    """The largest load of all ranks, from the two largest sizes that were tried. One alone says no more than that all
    but what was there before may grow with the size."""
    last = needs[-1]
    if len(needs) == 1:
        return max(f + (load - f) * size / last.size for load, f in zip(last.loads, last.fixed, strict=True))
    before, more = needs[-2], (size - last.size) / (last.size - needs[-2].size)
    return max(one + max(0.0, one - other) * more for one, other in zip(last.loads, before.loads, strict=True))


# ---------------------------------------------------------------- one size


def _measured(config: RunConfig, splits: Splits, group: ProcessGroup, meter: "Meter") -> Need:
    """Tries a few steps with a share of at most two microbatches; what more of them would take is added."""
    beat("init")
    parts, ranks, size = config.batch.settled, group.ranks, config.batch.microbatch_size
    tried = min(parts, 2 * ranks.world_size)
    batch = config.batch.model_copy(update={"microbatches": tried, "global_size": tried * size})
    train = config.train.model_copy(update={"non_finite": "stop"})  # which has nothing to go back to
    trial = config.model_copy(update={"batch": batch, "train": train})
    meter.begin()
    learner = build_learner(trial, splits, group.device)
    weights = sum(p.nbytes for p in learner.model.parameters() if p.requires_grad)
    sums = [_sums(ranks.world_size, count)[ranks.rank] for count in (parts, tried)]
    more = weights * max(0, sums[0] - sums[1])
    held, processes = _train(trial, splits, group, learner, meter)
    state = learner.state_tensors(TrainState())
    saved = sum(tensor.nbytes for file in state.tensor_files().values() for tensor in file.values())
    del state
    copy = 0 if group.device.type == "cuda" else saved / ranks.local_world_size  # one on each node, to be safe
    need = meter.peak() + processes + more + copy
    del learner
    row = (need / meter.room, (held + more + copy) / meter.room, meter.before + need * meter.sharing, meter.limit)
    rows = group.gather_objects(row)
    loads, fixed, used, limits = zip(*rows, strict=True)
    worst = loads.index(max(loads))
    return Need(size=size, loads=[*loads], fixed=[*map(min, fixed, loads)], used=used[worst], limit=limits[worst])


def _train(config: RunConfig, splits: Splits, group: ProcessGroup, learner: Learner, meter: "Meter") -> tuple[int, int]:
    """Trains for a few steps; returns the bytes that this rank holds after them, and those that the loading processes
    have taken beyond what they share with it."""
    due = Due.of(config, train_sampler(config, splits.train, group.ranks).steps_per_epoch)
    agreement = Agreement(group, StopFlag())
    trainer = Trainer(config, group, splits, learner, due, agreement, NullTracker(), NullCheckpointManager())
    state, taken, held = TrainState(), 0, 0
    try:
        for microbatches in trainer.batches(0, max(_STEPS, due.total_steps)):  # read ahead as far as in the training
            train_step(trainer, state, microbatches)
            state.step += 1
            beat("init")
            taken = max(taken, sum(_own_memory(child.pid) for child in multiprocessing.active_children()))
            if state.step == _STEPS:
                held = meter.now()
                break
    finally:
        trainer.parallel.close()
    return held, 0 if group.device.type == "cuda" else taken


def _sums(world_size: int, microbatches: int) -> list[int]:
    """Of each rank, how many partial sums of gradients there is room for: those that it holds while it computes, and
    those that it sends, each with a copy of it."""
    found = []
    for rank in range(world_size):
        own = share(rank, world_size, microbatches)
        counter: BinaryCounter[int] = BinaryCounter(microbatches, lambda left, right: left)
        held = 0
        for number in own[:-1]:
            counter.push(number, 0)
            held = max(held, len(counter.nodes))
        found.append(held + 2 * len(cover(own, (0, microbatches))))
    return found


# ---------------------------------------------------------------- memory


class Meter:
    """This rank's memory, and how much more of it there is: made by all ranks of a node at the same time.

    Attributes:
        limit: of the device; on a CPU of the node's cgroup, or of the machine.
        before: what is used of it.
        sharing: ranks that share what is left.
        room: what this rank may take of it.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._device = group.device
        _give_back(group.device)
        group.barrier()
        if group.device.type == "cuda":
            free, self.limit = torch.cuda.mem_get_info(group.device)
            self.sharing, self._base = 1, torch.cuda.memory_reserved(group.device)
        else:
            found, status = scarcest(), status_of()
            free, self.limit, self.sharing = found.left, found.limit, group.ranks.local_world_size
            self._base = status["VmRSS"] + status.get("VmSwap", 0)
        self.before = self.limit - free
        self.room = max(1.0, (free - max(_RESERVE * self.limit, _LEAST_RESERVE)) / self.sharing)
        group.barrier()  # or a rank would take what another one has not looked at yet

    def begin(self) -> None:
        """From here on counts what is the peak."""
        _give_back(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):  # the peak of all is then that of the largest size, which is the last one
                Path("/proc/self/clear_refs").write_text("5")

    def now(self) -> int:
        """As `peak`, of what is held now."""
        _give_back(self._device)
        if self._device.type == "cuda":
            return torch.cuda.memory_reserved(self._device) - self._base
        status = status_of()
        return max(0, status["VmRSS"] + status.get("VmSwap", 0) - self._base)

    def peak(self) -> int:
        """Bytes beyond those at the beginning; with any that were swapped out."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device) - self._base
        status = status_of()
        return max(0, status["VmHWM"] + status.get("VmSwap", 0) - self._base)


def _give_back(device: torch.device) -> None:
    """Everything that is free, so that it is not counted as used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _own_memory(process: int | None) -> int:
    """Bytes of a forked process that it does not share with others."""
    with suppress(OSError):
        lines = (line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines())
        return sum(int(words[1]) * 1024 for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))
    return 0


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
