"""The composition root: builds everything that a rank needs, then calls loop.train.

Runs under the launcher, under plain torchrun (`torchrun … -m dist_train CONFIG`) and alone (`python -m dist_train
CONFIG`), and ends in the same bits.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_train import models, optim, tasks
from dist_train.checkpoint.keeper import Checkpoints, Keeper, NoCheckpoints
from dist_train.checkpoint.resume import Resumed, hand_on, restore
from dist_train.checkpoint.state import Snapshot, TrainState, copied, optimizer_tensors, progress
from dist_train.checkpoint.store import CheckpointStore, is_checkpoint, locate
from dist_train.config.errors import ExitCode, UserError
from dist_train.config.problems import ConfigError
from dist_train.config.schema import RunConfig
from dist_train.config.source import load
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.stop import EXIT_CODES, Request, StopFlag
from dist_train.data import datasets
from dist_train.data.loader import evaluation_batches, number_of_batches, train_batches, train_sampler
from dist_train.ema import Ema
from dist_train.evaluate import Evaluation, evaluate
from dist_train.loop import train
from dist_train.meter import Meter
from dist_train.open_run import Opened, open_run
from dist_train.parallel import Parallel
from dist_train.process_group import ProcessGroup
from dist_train.ranks import Ranks
from dist_train.run import Run, gives_up
from dist_train.run_directory import DirectoryRecord, NoRecord, RunRecord
from dist_train.schedule import Schedule
from dist_train.tasks.base import Task
from dist_train.tracking import tracker as tracking
from dist_train.tracking.base import Outcome, RunFacts
from dist_train.tracking.tracker import NullTracker

SIGNALS = {Request.INTERRUPT: "SIGINT", Request.TERMINATE: "SIGTERM", Request.REQUEUE: "SIGUSR1"}
"""What state.json says of a life that was stopped."""


def main(argv: Sequence[str], flag: StopFlag) -> int:
    """Trains as the arguments say; returns the exit code. Under the launcher, errors are left to it."""
    arguments = parse(argv)
    flag.supervised = arguments.supervised
    ranks = Ranks.from_environment()
    try:
        request = work(arguments, ranks, flag)
    except (UserError, ConfigError) as error:
        if arguments.supervised:
            raise
        if ranks.is_first:
            print(error, file=sys.stderr)
        return int(getattr(error, "code", ExitCode.CONFIG))
    # The launcher reads the reason in state.json; a rank that ended with another code would look like a failure to it.
    return 0 if arguments.supervised else int(EXIT_CODES.get(request, ExitCode.DONE))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dist_train", description="One rank of a training.")
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace the file's")
    parser.add_argument("--run-dir", type=Path, help="where the run lives; resumed if it holds checkpoints")
    parser.add_argument("--resume", metavar="auto|none|CHECKPOINT", help="what to begin from")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY", help="may differ on resume")
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def work(arguments: argparse.Namespace, ranks: Ranks, flag: StopFlag) -> Request:
    """One life of a run on this rank."""
    config = load(arguments.config, arguments.overrides)
    settle_numerics(config)
    with ProcessGroup(ranks, config.distributed) as group:
        opened = group.from_first(
            lambda: open_run(config, ranks.world_size, arguments.run_dir, arguments.resume, arguments.allow_change)
        )
        life = build(opened, group, flag)
        try:
            return live(life)
        finally:
            life.tracker.close()
            life.run.parallel.close()


def settle_numerics(config: RunConfig) -> None:
    """Whatever else a result could depend on: the order of sums inside an operation."""
    torch.set_num_threads(config.distributed.threads_per_rank)
    if config.exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the CUDA context is made
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs a pass over memory
        torch.backends.cudnn.benchmark = False


# ---------------------------------------------------------------- its parts


@dataclass(frozen=True, kw_only=True)
class Life:
    """A run, and what is done before and after its loop."""

    run: Run
    state: TrainState
    facts: RunFacts
    record: RunRecord
    notes: tuple[str, ...]
    tracker: NullTracker
    judge: Callable[[TrainState], Evaluation | None]
    """The best checkpoint on the test split, where there is one."""


def build(opened: Opened, group: ProcessGroup, flag: StopFlag) -> Life:
    """Builds everything, on every rank, for one life of the run."""
    config, ranks, device = opened.config, group.ranks, group.device
    assert isinstance(config.batch.microbatches, int)
    splits = datasets.build(config.data, group.first_per_node)
    sampler = train_sampler(config, splits.train, ranks)
    task = tasks.build(config.task, splits.classes)
    classes = len(splits.classes) if splits.classes else None
    model = models.build(config.model, shape=splits.shape, classes=classes, seed=config.seed).to(device)
    optimizer = optim.build(config.optimizer, model)
    if config.model.sync_batchnorm and device.type == "cpu":
        raise UserError("model.sync_batchnorm is for GPUs; torch has none for a CPU: leave it out")
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    ema = Ema(model, config.train.ema_decay) if config.train.ema_decay is not None else None
    due = Due.of(config, sampler.steps_per_epoch)
    resumed = hand_on(opened.found, group)
    state = restore(resumed, model, optimizer, ema, scaler) if resumed else TrainState()
    state.finished = state.step >= due.total_steps or gives_up(config, state)
    if config.model.compile:
        model.compile()
    record = DirectoryRecord(opened.run_dir, ranks, _generation(opened.run_dir)) if ranks.is_first else NoRecord()
    tracker = tracking.build(config, ranks, opened.run_dir)
    judged = ema.module if ema else model
    figures = partial(figures_of, config, judged, task, group)
    limit = config.train.stop_after
    flag.limit(limit.seconds if limit is not None and limit.is_time else None)
    run = Run(
        config=config,
        microbatch_size=sampler.microbatch_size,
        parallel=Parallel(model, group, config, config.batch.microbatches),
        task=task,
        optimizer=optimizer,
        schedule=Schedule(
            config=config.schedule,
            peak=config.optimizer.lr,
            total_steps=due.total_steps,
            steps_per_epoch=sampler.steps_per_epoch,
            global_batch=config.batch.global_size,
        ),
        scaler=scaler,
        ema=ema,
        batches=partial(train_batches, config, splits, ranks, device, num_classes=classes),
        evaluation=partial(figures, splits.evaluation),
        autocast=_autocast(config, device),
        meter=Meter(
            group,
            microbatches=config.batch.microbatches,
            global_batch=config.batch.global_size,
            steps_per_epoch=sampler.steps_per_epoch,
            infinite_norm_is_fine=scaler.is_enabled(),
        ),
        tracker=tracker,
        checkpoints=_checkpoints(
            opened,
            ranks,
            model,
            optimizer,
            ema,
            scaler,
            tracker,
            record,
            {"classes": splits.classes, "shape": splits.shape},
        ),
        agreement=Agreement(group, flag),
        due=due,
    )
    return Life(
        run=run,
        state=state,
        facts=_facts(opened, group, run, splits, sampler.steps_per_epoch, resumed),
        record=record,
        notes=opened.notes,
        tracker=tracker,
        judge=partial(_judge, run, group, opened.run_dir, judged, splits.test, figures),
    )


def figures_of(config: RunConfig, model: nn.Module, task: Task, group: ProcessGroup, dataset: Any) -> Evaluation:
    """The figures of `model` on one split, on all ranks together."""
    return evaluate(
        model,
        task,
        lambda numbers: evaluation_batches(config, dataset, numbers, group.device, group.ranks.local_world_size),
        number_of_batches(len(dataset), config.eval.batch_size),
        group,
        mode=config.eval.mode,
        autocast=_autocast(config, group.device),
    )


def _autocast(config: RunConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if config.train.precision == "fp32":
        return nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]
    return partial(torch.autocast, device.type, dtype=dtype)


def _checkpoints(
    opened: Opened,
    ranks: Ranks,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    scaler: torch.amp.GradScaler,
    tracker: NullTracker,
    record: RunRecord,
    data: Mapping[str, Any],
) -> Keeper:
    if not ranks.is_first:
        return NoCheckpoints()

    def capture(state: TrainState) -> Snapshot:
        tensors, values = optimizer_tensors(optimizer, model)
        return Snapshot(
            model=copied(model.state_dict()),
            optimizer=copied(tensors),
            ema=copied(ema.state()) if ema else None,
            other={"progress": progress(state), "optimizer": values, "scaler": scaler.state_dict(), "data": data},
        )

    config = opened.config
    facts = {"world_size": ranks.world_size, "global_batch": config.batch.global_size, "torch": torch.__version__}
    store = CheckpointStore(opened.run_dir / "checkpoints", config.checkpoint.keep, _generation(opened.run_dir))
    return Checkpoints(store, capture, facts, tracker.note, lambda state: record.update("running", state))


def _generation(run_dir: Path) -> int:
    """Which life of the process group this is; the launcher counts them."""
    return max((int(path.name) for path in (run_dir / "generations").glob("[0-9]*")), default=0)


def _facts(
    opened: Opened, group: ProcessGroup, run: Run, splits: Any, steps_per_epoch: int, resumed: Resumed | None
) -> RunFacts:
    config, ranks = opened.config, group.ranks
    assert isinstance(config.batch.microbatches, int)
    return RunFacts(
        run_dir=opened.run_dir,
        config=config,
        name=config.name,
        model=config.model.name,
        parameters=sum(p.numel() for p in run.parallel.module.parameters()),
        world_size=ranks.world_size,
        nodes=ranks.nodes,
        backend=group.backend,
        device=torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        global_batch=config.batch.global_size,
        microbatches=config.batch.microbatches,
        train_samples=len(splits.train),
        evaluation_samples=len(splits.evaluation),
        steps_per_epoch=steps_per_epoch,
        total_steps=run.due.total_steps,
        first_step=resumed.state.step if resumed else 0,
        resumed_from=resumed.path.name if resumed else None,
        generation=_generation(opened.run_dir),
        classes=splits.classes,
        stop_step=run.due.last_step if run.due.last_step < run.due.total_steps else None,
    )


# ---------------------------------------------------------------- its life


def live(life: Life) -> Request:
    """Trains, judges the best checkpoint, and says how it ended."""
    run, state, started = life.run, life.state, time.monotonic()
    life.record.begin(run.config, run.due.total_steps)
    life.tracker.begin(life.facts)
    for line in life.notes:
        life.tracker.note(line)
    life.record.update("running", state)
    request = Request.NONE if state.finished or state.step >= run.due.last_step else train(run, state)
    run.checkpoints.close()
    metrics = dict(state.metrics)
    if state.finished and (figures := life.judge(state)) is not None:
        metrics = {"split": "test", **figures.metrics}
    best = None
    if state.best_step is not None:
        best = {"metric": run.config.eval.best, "value": state.best_value, "step": state.best_step}
    status = "done" if state.finished else "stopped"
    life.record.update(status, state, SIGNALS.get(request))
    newest = life.facts.run_dir / "checkpoints" / f"step-{state.step:08d}"
    life.tracker.finish(
        Outcome(
            status="done" if state.finished else "stopped",
            metrics=metrics,
            best=best,
            seconds=time.monotonic() - started,
            checkpoint=run.checkpoints.last or (newest if is_checkpoint(newest) else None),
        )
    )
    return Request.NONE if state.finished else request


def _judge(
    run: Run,
    group: ProcessGroup,
    run_dir: Path,
    model: nn.Module,
    test: Any,
    figures: Callable[[Any], Evaluation],
    state: TrainState,
) -> Evaluation | None:
    """Evaluates the best checkpoint's weights on the test split, which has chosen nothing."""
    if test is None:
        return None
    best = hand_on(group.from_first(lambda: locate(run_dir, run.tracker.note, best=True)), group)
    assert best is not None
    weights = best.snapshot.ema or best.snapshot.model
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name != "n_averaged"})
    result = figures(test)
    row = {
        "step": best.state.step,
        "epoch": run.meter.epoch(best.state.step),
        "samples_seen": best.state.samples_seen(run.config.batch.global_size),
        "split": "test",
        **result.metrics,
        "per_class": result.per_class,
    }
    run.tracker.log_evaluation(row, result.confusion)
    return result
