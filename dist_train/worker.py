"""The composition root: builds everything that a rank needs, then calls loop.train.

Runs under the launcher, under plain torchrun (`torchrun … -m dist_train CONFIG`) and alone (`python -m dist_train
CONFIG`), and ends in the same bits.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_train.checkpoint.keeper import Checkpoints, Keeper, NoCheckpoints
from dist_train.checkpoint.provenance import surroundings
from dist_train.checkpoint.resume import Resumed, check_surroundings, hand_on
from dist_train.checkpoint.state import TrainState
from dist_train.checkpoint.store import CheckpointStore
from dist_train.config.problems import ConfigError
from dist_train.config.recorded import given
from dist_train.config.schema import Custom, RunConfig
from dist_train.config.source import load
from dist_train.config.trust import powers, remember
from dist_train.control import non_finite
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.heartbeat import beat
from dist_train.control.stop import EXIT_CODES, Request, StopFlag
from dist_train.data import datasets
from dist_train.data.datasets import Splits
from dist_train.data.loader import evaluation_batches, number_of_batches, train_batches, train_sampler
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import Evaluation, evaluate
from dist_train.learner import Learner, autocast
from dist_train.learner import build as build_learner
from dist_train.models.deterministic import check
from dist_train.optim.schedule import Schedule
from dist_train.parallel import Parallel
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.randomness import Generators
from dist_train.resolve_run import Opened, laid_out_anew, open_run
from dist_train.run_state import DirectoryRecord, NoRecord, RunRecord, generation
from dist_train.rundir.lease import Lease
from dist_train.sanity import check_sanity
from dist_train.session import Life, go_back, judge, live
from dist_train.step_metrics import Meter
from dist_train.tasks.base import Task
from dist_train.tracking import tracker as tracking
from dist_train.tracking.base import RunFacts
from dist_train.tracking.tracker import NullTracker
from dist_train.trainer import Run, gives_up


def main(argv: Sequence[str], flag: StopFlag) -> int:
    """Trains as the arguments say; returns the exit code. Under the launcher, errors are left to it."""
    arguments = parse(argv)
    flag.supervised = arguments.supervised
    ranks = Ranks.from_environment()
    beat("init", 0)
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
    parser.add_argument("--trust", action="store_true", help="let the config that came with a run run others' code")
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def work(arguments: argparse.Namespace, ranks: Ranks, flag: StopFlag) -> Request:
    """One life of a run on this rank."""
    config = _config(arguments, ranks)
    settle_numerics(config)
    with Lease(takes_back=not arguments.supervised) as lease, ProcessGroup(ranks, config.distributed) as group:
        given = (arguments.run_dir, arguments.resume, arguments.allow_change)
        opened = group.from_first(lambda: open_run(config, ranks.world_size, *given, lease))
        life = build(opened, group, flag)
        try:
            return live(life)
        finally:
            life.run.checkpoints.end()
            life.run.tracker.close()
            life.run.parallel.close()


def _config(arguments: argparse.Namespace, ranks: Ranks) -> RunConfig:
    """The config, of which nothing is imported that the user does not trust; under the launcher, that has asked."""
    if arguments.supervised:
        return load(arguments.config, arguments.overrides)
    told = partial(print, file=sys.stderr) if ranks.is_first else lambda line: None
    config = given(Path(arguments.config), arguments.overrides, trusts=arguments.trust, note=told)
    if ranks.is_first:
        remember(powers(config))
    return config


def settle_numerics(config: RunConfig) -> None:
    """Whatever else a result could depend on: the order of sums inside an operation."""
    torch.set_num_threads(config.distributed.threads_per_rank)
    if config.exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the CUDA context is made
        if config.model.compile or any(isinstance(part, Custom) for part in (config.model, config.task)):
            torch.use_deterministic_algorithms(True)  # of the compiler's kernels too; a user's code may compile
        else:  # the same without the compiler, whose import takes a second
            torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only for debugging
        torch.backends.cudnn.benchmark = False


# ---------------------------------------------------------------- its parts


def build(opened: Opened, group: ProcessGroup, flag: StopFlag) -> Life:
    """Builds everything, on every rank, for one life of the run."""
    config, ranks = opened.config, group.ranks
    splits = datasets.build(config.data, group.first_per_node)
    facts = group.from_first(lambda: surroundings(config, splits, group.device))
    changes = check_surroundings(opened.found, facts, opened.allowed)
    found = () if opened.found else splits.notes  # once is enough
    opened = replace(opened, facts=facts, notes=(*opened.notes, *changes, *found))
    steps_per_epoch = train_sampler(config, splits.train, ranks).steps_per_epoch
    opened = replace(opened, notes=(*opened.notes, *laid_out_anew(opened.found, config, steps_per_epoch)))
    if config.train.sanity_check and opened.found is None and generation(opened.run_dir) <= 1:
        check_sanity(config, splits, group)
    learner = build_learner(config, splits, group.device)
    due = Due.of(config, steps_per_epoch)
    resumed = hand_on(opened.found, group)
    state = learner.restore(resumed) if resumed else TrainState()
    state.finished = state.step >= due.total_steps or gives_up(config, state)
    limit = config.train.stop_after
    flag.limit(limit.seconds if limit is not None and limit.is_time else None)
    life = generation(opened.run_dir)
    record = DirectoryRecord(opened.run_dir, opened.fence, ranks, life) if ranks.is_first else NoRecord()
    figures = partial(figures_of, config, learner.evaluated, learner.task, group)
    tracker = tracking.build(config, ranks, opened.run_dir)
    checkpoints = _checkpoints(opened, ranks, learner, due, tracker, record)
    run = build_run(config, group, splits, learner, due, Agreement(group, flag), tracker, checkpoints, opened.run_dir)
    return Life(
        run=run,
        state=state,
        facts=_facts(opened, group, run, splits, steps_per_epoch, resumed),
        record=record,
        judge=partial(judge, run, learner, group, opened.run_dir, splits.test, figures),
        notes=opened.notes,
    )


def build_run(
    config: RunConfig,
    group: ProcessGroup,
    splits: Splits,
    learner: Learner,
    due: Due,
    agreement: Agreement,
    tracker: NullTracker,
    checkpoints: Keeper,
    run_dir: Path,
) -> Run:
    """What the loop needs, for a training and for its replay. `config` has its number of microbatches settled."""
    assert isinstance(config.batch.microbatches, int)
    steps_per_epoch = train_sampler(config, splits.train, group.ranks).steps_per_epoch
    sizes = {"steps_per_epoch": steps_per_epoch, "global_batch": config.batch.global_size}
    check(config, learner.model, group.device, group.ranks.world_size, config.batch.microbatches)
    if config.model.compile:
        learner.model.compile()
    meter = Meter(
        group,
        microbatches=config.batch.microbatches,
        infinite_norm_is_fine=learner.scaler.is_enabled(),
        wants_samples=config.tracking.samples,
        **sizes,
    )
    generators = Generators(learner.model, learner.task, learner.optimizer)
    parallel = Parallel(learner.model, group, config, config.batch.microbatches, generators)
    back = partial(go_back, learner, group, checkpoints, run_dir, tracker.note)
    return Run(
        config=config,
        microbatch_size=config.batch.global_size // config.batch.microbatches,
        parallel=parallel,
        task=learner.task,
        optimizer=learner.optimizer,
        schedule=Schedule(config=config.schedule, peak=config.optimizer.lr, total_steps=due.total_steps, **sizes),
        scaler=learner.scaler,
        ema=learner.ema,
        batches=partial(train_batches, config, splits, group.ranks, group.device, task=learner.task),
        evaluation=partial(figures_of, config, learner.evaluated, learner.task, group, splits.evaluation),
        autocast=autocast(config, group.device),
        meter=meter,
        tracker=tracker,
        checkpoints=checkpoints,
        agreement=agreement,
        due=due,
        non_finite=non_finite.build(config, group, parallel.put_back_buffers, back, due.anchor),
        generators=generators,
    )


def figures_of(config: RunConfig, model: nn.Module, task: Task, group: ProcessGroup, dataset: Any) -> Evaluation:
    """The figures of `model` on one split, on all ranks together."""
    return evaluate(
        model,
        task,
        lambda numbers: evaluation_batches(config, dataset, numbers, group.device, group.ranks.local_world_size, task),
        number_of_batches(len(dataset), config.eval.batch_size),
        group,
        seed=config.seed,
        mode=config.eval.mode,
        autocast=autocast(config, group.device),
    )


def _checkpoints(
    opened: Opened, ranks: Ranks, learner: Learner, due: Due, tracker: NullTracker, record: RunRecord
) -> Keeper:
    if not ranks.is_first:
        return NoCheckpoints()
    config = opened.config
    facts = {"world_size": ranks.world_size, "global_batch": config.batch.global_size, **opened.facts}
    life = generation(opened.run_dir)
    store = CheckpointStore(opened.run_dir / "checkpoints", config.checkpoint.keep, life, opened.fence)
    return Checkpoints(
        store,
        learner.uncopied,
        facts,
        tracker.note,
        lambda state: record.update("running", state),
        also=lambda step: (due.anchor(step),) if config.train.non_finite == "rollback" else (),
        background=config.checkpoint.background,
        # Meanwhile the other ranks may wait in a collective, and give up after twice that.
        patience=config.distributed.timeout.seconds / 2,
    )


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
        generation=generation(opened.run_dir),
        classes=splits.classes,
        stop_step=run.due.last_step if run.due.last_step < run.due.total_steps else None,
    )
