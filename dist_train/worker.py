"""The composition root: builds everything that a rank needs, then runs its session.

Runs under the launcher, under plain torchrun (`torchrun … -m dist_train CONFIG`) and alone (`python -m dist_train
CONFIG`), and ends in the same bits. `NullX` is the base class of X, and what a rank has that has no X.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dist_train import models
from dist_train.callbacks import Callbacks, NullCallbacks, build_callbacks
from dist_train.checkpoint.manager import CheckpointManager, NullCheckpointManager
from dist_train.checkpoint.provenance import ask_for_commit, surroundings
from dist_train.checkpoint.resume import broadcast_checkpoint, check_surroundings
from dist_train.checkpoint.state import TrainState
from dist_train.checkpoint.store import LACKS_EVALUATION, CheckpointStore
from dist_train.config.problems import ConfigError
from dist_train.config.ranges import parse_ranks, parse_steps
from dist_train.config.recorded import load_given
from dist_train.config.schema import RunConfig
from dist_train.config.shipped import meant_by
from dist_train.config.source import load
from dist_train.config.trust import powers, remember
from dist_train.control.agreement import Agreement
from dist_train.control.due import Due
from dist_train.control.stop import EXIT_CODES, Request, StopFlag
from dist_train.data import datasets
from dist_train.data.cache.survey import holding, parts
from dist_train.data.datasets import Splits
from dist_train.data.loader import train_sampler
from dist_train.data.resident import on_the_device
from dist_train.data.source import Source
from dist_train.errors import ExitCode, UserError
from dist_train.fit import fit_microbatches, trial_config
from dist_train.gallery import Gallery, NullGallery
from dist_train.heartbeat import beat, set_aside
from dist_train.learner import Learner, build_learner
from dist_train.memory import keep_freed_memory
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.processor import processor
from dist_train.profile import NullProfile, Profile
from dist_train.report.bottleneck import Setting
from dist_train.report.words import holding_in_words
from dist_train.resolve_run import ResolvedRun, changed_schedule, resolve_run
from dist_train.run_state import NullRunRecord, RunRecord
from dist_train.rundir.layout import RunDir
from dist_train.rundir.lease import Lease
from dist_train.sanity import check_sanity
from dist_train.session import Session
from dist_train.tracking.base import RunFacts
from dist_train.tracking.tracker import NullTracker, build_tracker
from dist_train.trainer import Trainer, stops_early

FLOOR_S, LEAF_FLOOR_S = 0.0001, 0.00007
"""Seconds of a microbatch's forward and backward, and of each layer's part in them, that pass in Python and in the
dispatch of kernels: measured with one sample of 8 × 8 pixels."""


def main(argv: Sequence[str], flag: StopFlag) -> int:
    """Trains as the arguments say; returns the exit code. Under the launcher, errors are left to it."""
    arguments = _parse(argv)
    flag.supervised = arguments.supervised
    ranks = Ranks.from_environment()
    beat("init", 0)
    try:
        request = _train(arguments, ranks, flag)
    except (UserError, ConfigError) as error:
        if arguments.supervised:
            raise
        if ranks.is_first:
            print(error, file=sys.stderr)
        return int(getattr(error, "code", ExitCode.CONFIG))
    # The launcher reads the reason in state.json; it would take any other exit code for a failure of the rank.
    return 0 if arguments.supervised else int(EXIT_CODES.get(request, ExitCode.DONE))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dist_train", description="One rank of a training.")
    parser.add_argument("config", type=meant_by, help="a YAML file, or a config that comes along, such as digits")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace the file's")
    parser.add_argument("--run-dir", type=Path, help="where the run lives; resumed if it holds checkpoints")
    parser.add_argument("--resume", metavar="auto|none|CHECKPOINT", help="what to begin from")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY", help="may differ on resume")
    parser.add_argument("--trust", action="store_true", help="let the config that came with a run run others' code")
    parser.add_argument("--profile", metavar="STEPS", help="record what the ranks do in these steps, such as 20-25")
    parser.add_argument("--profile-ranks", metavar="RANKS", default="0", help="of these ranks, such as 0,3 or all")
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def _train(arguments: argparse.Namespace, ranks: Ranks, flag: StopFlag) -> Request:
    if ranks.is_first:
        ask_for_commit()
    config = _config(arguments, ranks)
    set_deterministic(config)
    lease = Lease(takes_back=not arguments.supervised, renews=set_aside)
    with lease, ProcessGroup(ranks, config.distributed) as group:
        asked = (arguments.run_dir, arguments.resume, arguments.allow_change)
        resolved = group.run_on_rank0(lambda: resolve_run(config, ranks.world_size, *asked, lease))
        profiled = (arguments.profile, arguments.profile_ranks)
        with (
            build_tracker(resolved.config, ranks, resolved.run_dir, supervised=flag.supervised) as tracker,
            closing(build_session(resolved, group, flag, tracker, profiled)) as session,
        ):
            return session.run()


def _config(arguments: argparse.Namespace, ranks: Ranks) -> RunConfig:
    """Reads the config. Nothing that it names is imported unless the user trusts it. The launcher has asked already."""
    if arguments.supervised:
        return load(arguments.config, arguments.overrides)

    def note(line: str) -> None:
        if ranks.is_first:
            print(line, file=sys.stderr)

    config = load_given(Path(arguments.config), arguments.overrides, trusts=arguments.trust, note=note)
    if ranks.is_first:
        remember(powers(config))
    return config


def set_deterministic(config: RunConfig) -> None:
    """Fixes whatever else a result could depend on: threads, and the order of sums inside an operation."""
    torch.set_num_threads(config.distributed.threads_per_rank)
    keep_freed_memory()
    if config.exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the CUDA context is made
        if "torch._inductor.config" in sys.modules:
            torch.use_deterministic_algorithms(True)  # its kernels, too
        else:  # the same without importing the compiler, which takes a second; once imported, it reads the variable
            os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"
            torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only for debugging
        torch.backends.cudnn.benchmark = False


def build_session(
    resolved: ResolvedRun,
    group: ProcessGroup,
    flag: StopFlag,
    tracker: NullTracker,
    profiled: tuple[str | None, str] = (None, "0"),
) -> Session:
    """Builds everything that this rank needs; all ranks call it together.

    Args:
        profiled: --profile and --profile-ranks.
    """
    tracker.busy("loading the data")
    own = build_callbacks(resolved.config, group.ranks)
    splits = datasets.build_all(resolved.config, group.local_rank0_first)
    provenance = group.run_on_rank0(lambda: surroundings(resolved.config, splits, group.device))
    checkpoint = resolved.checkpoint
    changes = [] if checkpoint is None else check_surroundings(checkpoint, provenance, resolved.allowed)
    on_device = on_the_device(resolved.config, splits, group, flag, tracker.busy)
    due = Due.of(resolved.config, train_sampler(resolved.config, splits.train, group.ranks).steps_per_epoch)
    steps = parse_steps(profiled[0], due.last_step) if profiled[0] is not None else range(0)
    chosen = parse_ranks(profiled[1], group.ranks.world_size, "--profile-ranks") or []
    kept = [holding(part) for part in parts(splits)] if group.ranks.is_first else []
    resolved = _tried(resolved, splits, group, tracker)
    config, notes = resolved.config, [*resolved.notes, *changes]
    provenance["config"] = json.loads(config.model_dump_json())
    # A new run shows the notes on its files. Once is enough.
    notes += splits.notes if checkpoint is None else changed_schedule(checkpoint, config, due.steps_per_epoch)
    if kept:
        notes.append(f"cache  {holding_in_words(kept)}")
    tracker.busy("building the model")
    learner = build_learner(config, splits, group.device, starts=checkpoint is None)
    state = TrainState()
    if checkpoint is None:
        notes += learner.notes
    else:
        state = learner.restore(broadcast_checkpoint(checkpoint, group), checkpoint.path)
    state.finished = state.step >= due.total_steps or stops_early(config, state)
    if (limit := config.train.stop_after) is not None and limit.is_time:
        flag.limit(limit.seconds)
    callbacks = (
        Callbacks(own, config, group.ranks, learner, due.steps_per_epoch, tracker, resolved.run_dir)
        if own
        else NullCallbacks()
    )
    record, checkpoints = _build_writers(resolved, group.ranks, learner, due, provenance, tracker, callbacks)
    agreement = Agreement(group, flag)
    profile = Profile(steps, chosen, group.ranks, RunDir(resolved.run_dir), tracker.note) if steps else NullProfile()
    if steps and state.step >= steps[-1]:
        notes.append(f"! --profile {profiled[0]}: the run is past these steps, nothing is recorded")
    gallery = Gallery(config, splits, group, RunDir(resolved.run_dir)) if group.ranks.is_first else NullGallery()
    shows = callbacks, profile, gallery
    trainer = Trainer(config, group, on_device, learner, due, agreement, tracker, checkpoints, *shows)
    facts = _run_facts(resolved, trainer, state)
    lacks = checkpoint is not None and bool(checkpoint.manifest.get(LACKS_EVALUATION))
    return Session(
        trainer=trainer, state=state, facts=facts, record=record, notes=tuple(notes), begins_with_evaluation=lacks
    )


def _tried(resolved: ResolvedRun, splits: Splits, group: ProcessGroup, tracker: NullTracker) -> ResolvedRun:
    """Checks the run's sanity, where that is due, and settles its number of microbatches. Returns the settled run."""
    config, fits = resolved.config, resolved.config.batch.microbatches == "fit"
    if resolved.checkpoint is None:
        models.fetch(config.model, group.local_rank0_first)
        if config.train.sanity_check and resolved.generation <= 1:
            tracker.busy("trying a few samples (train.sanity_check)")
            check_sanity(trial_config(config, group.ranks.world_size) if fits else config, splits, group)
    if not fits:
        return resolved
    tracker.busy("finding out how large microbatches may be (batch.microbatches: fit)")
    config, line = fit_microbatches(config, splits, group)
    return replace(resolved, config=config, notes=(*resolved.notes, line))


def _build_writers(
    resolved: ResolvedRun,
    ranks: Ranks,
    learner: Learner,
    due: Due,
    provenance: Mapping[str, Any],
    tracker: NullTracker,
    callbacks: NullCallbacks,
) -> tuple[NullRunRecord, NullCheckpointManager]:
    """Builds what writes into the run directory. Only rank 0's objects write."""
    if not ranks.is_first:
        return NullRunRecord(), NullCheckpointManager()
    config, run_dir, fence = resolved.config, resolved.run_dir, resolved.fence
    run = RunDir(run_dir)
    record = RunRecord(run_dir, fence, config, ranks, resolved.generation, due.total_steps)

    def saved(state: TrainState) -> None:
        record.update("running", state)
        callbacks.call("on_checkpoint", state.step, state.metrics, path=checkpoints.last)
        if checkpoints.last is not None:
            row = {"step": state.step, **state.metrics}
            tracker.log_checkpoint(checkpoints.last, row, is_best=state.best_step == state.step)

    checkpoints = CheckpointManager(
        CheckpointStore(
            run.checkpoints, config.checkpoint.keep, resolved.generation, fence, (run.metrics, run.samples)
        ),
        learner.state_tensors,
        {"world_size": ranks.world_size, "global_batch": config.batch.global_size, **provenance},
        tracker.note,
        on_saved=saved,
        also=lambda step: (due.rollback_step(step),) if config.train.non_finite == "rollback" else (),
        background=config.checkpoint.background,
        # Meanwhile the other ranks may wait in a collective, and give up after twice that.
        write_timeout_s=config.distributed.timeout.seconds / 2,
    )
    return record, checkpoints


def _run_facts(resolved: ResolvedRun, trainer: Trainer, state: TrainState) -> RunFacts:
    config, group, due = trainer.config, trainer.group, trainer.due
    return RunFacts(
        run_dir=resolved.run_dir,
        config=config,
        name=config.name,
        model=config.model.name,
        parameters=sum(p.numel() for p in trainer.learner.model.parameters()),
        world_size=group.ranks.world_size,
        nodes=group.ranks.nodes,
        backend=group.backend,
        device=torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        global_batch=config.batch.global_size,
        microbatches=config.batch.settled,
        train_samples=len(trainer.splits.train),
        evaluation_samples=len(trainer.splits.evaluation),
        steps_per_epoch=due.steps_per_epoch,
        total_steps=due.total_steps,
        first_step=state.step,
        best_value=state.best_value,
        resumed_from=resolved.checkpoint.path.name if resolved.checkpoint else None,
        generation=resolved.generation,
        classes=trainer.splits.classes,
        tokens=trainer.splits.tokens,
        stop_step=due.last_step if due.last_step < due.total_steps else None,
        setting=_setting(trainer),
    )


def _setting(trainer: Trainer) -> Setting:
    """What the speed of a session depends on."""
    config, group, model = trainer.config, trainer.group, trainer.learner.model
    here = group.ranks.local_world_size
    source = Source.of_training(config, trainer.splits, group.device, None)
    workers = source.number_of_workers(config.loader, here, trainer.due.total_steps)
    leaves = sum(not any(module.children()) for module in model.modules())
    return Setting(
        cores=max(1, len(os.sched_getaffinity(0)) // here),
        workers=workers,
        floor=FLOOR_S + leaves * LEAF_FLOOR_S,
        parameters=sum(parameter.numel() for parameter in trainer.parallel.parameters),
        on_gpu=group.device.type == "cuda",
        bf16=group.device.type == "cpu" and bool(processor().bf16),
    )
