"""`dist-train train`."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dist_train.config.ranges import parse_ranks, parse_steps
from dist_train.errors import UserError
from dist_train.rundir.layout import FAST_DEV_RUN

from .. import completion
from ..configs import existing_config, load_trusted, program_for, remember_configs, split_config
from ..console import mark, say
from ..plan import LaunchPlan, count_nodes, host, make_plan
from ..plan.flags import Flags, as_words
from ..plan.run_choice import RunRequest, choose_run, config_of
from ..scheduler import everywhere
from .common import RESUME, json_option, launch_command, print_verdict, trust_option
from .launch_flags import launch_flags

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

EPILOG = """\b
Where a run lives, and what it goes on from:
  (nothing)                 a new directory, RUN_ROOT/NAME/<UTC time>-<4 characters>
  --run-dir DIR             that directory; goes on if it holds checkpoints
  --run-dir DIR --resume none
                            that directory, which must not hold checkpoints
  --resume auto             in the newest run of that name that has a checkpoint, or a new directory
  --resume RUN              in that run's directory; CONFIG may be left out
  --resume CHECKPOINT       a new directory that begins from RUN/checkpoints/step-…
  in a SLURM job            RUN_ROOT/NAME/slurm-JOBID, so that a requeued job goes on; the next config that the job
                            trains has slurm-JOBID-2
In the shell of salloc or srun --pty it starts itself on all nodes of the allocation, with srun.
Several nodes without SLURM need the same --run-dir (or --rdzv-id) on each.

\b
Ctrl-C, SIGTERM: save and stop; a second one ends everything at once.
SIGUSR1: save, stop, exit code 75 (start me again). SIGUSR2: save and go on."""


@launch_command(epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[CONFIG] [a.b=c]...", shell_complete=completion.words)
@launch_flags
@click.option("--run-dir", type=click.Path(file_okay=False), help="Where the run lives; see below.")
@click.option("--resume", help="What it goes on from; see below.", **RESUME)
@click.option(
    "--allow-change",
    multiple=True,
    metavar="KEY",
    help="A config key, or `torch` or `data`, that may differ from what the run began with.",
)
@click.option(
    "--profile", metavar="STEPS", help="Record what is done in these steps, such as 20-25, for a trace viewer."
)
@click.option("--profile-ranks", metavar="RANKS", help="Of these ranks, such as 0,3 or all. Default: 0.")
@trust_option
@click.option("--preflight", is_flag=True, help="First look, on every node, whether it could work; see doctor.")
@json_option("Print the verdict as one JSON object at the end, on stdout.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would run, or why it could not. Starts nothing; of files, only a cache of the data may be made.",
)
@click.option("--verbose", "full", is_flag=True, help="Of --dry-run: print the resolved config too, on stdout.")
@click.option(
    "--fast-dev-run",
    is_flag=True,
    help="Try three steps, evaluations and saves. Leaves nothing.",
)
def command(
    words: tuple[str, ...], dry_run: bool, fast_dev_run: bool, preflight: bool, as_json: bool, **options: Any
) -> None:
    """Train what CONFIG describes, with overrides such as optimizer.lr=0.1."""
    full = options.pop("full")
    if fast_dev_run:
        sys.exit(_fast_dev_run(words, print_verdict if as_json else None, **options))
    everywhere(options, lambda: _folder_of(words, **options), dry_run=dry_run)
    planned = plan_training(words, **options)
    if dry_run:
        from ..plan.dry_run import show

        sys.exit(show(planned.config, planned.plan, planned.found.path, planned.found.overrides, full=full))
    from .. import foreign_files

    remember_configs([planned.config])
    foreign_files.remember(planned.plan.folder)
    if preflight:
        from ..doctor import examine

        examine.preflight(planned.config, planned.plan)
    if planned.note:
        say(planned.note)
    from ..supervisor import supervise

    sys.exit(supervise(planned.plan, print_verdict if as_json else None))


FEW_STEPS = (
    *("train.stop_after=3 steps", "eval.every=2 steps", "eval.most_batches=2"),
    *("checkpoint.every=1 steps", "tracking.every=1 steps"),
)


def _fast_dev_run(words: tuple[str, ...], report: Any, run_dir: str | None, resume: str | None, **options: Any) -> int:
    """Trains a few steps in a folder that is removed afterwards. Returns the exit code.

    Raises:
        UserError: on several nodes, since each would have a folder of its own; with --run-dir, --resume or --profile.
    """
    if run_dir is not None or resume is not None:
        raise UserError("--fast-dev-run begins anew, in a folder of its own: leave --run-dir and --resume out")
    if options["profile"] is not None:
        raise UserError("--fast-dev-run leaves nothing, and so no profile: leave one of the two out")
    from dist_train.config.schema import TrackingConfig

    from ..supervisor import supervise

    with tempfile.TemporaryDirectory(prefix=FAST_DEV_RUN) as folder:
        words = (*words, *FEW_STEPS, *TrackingConfig.none)
        planned = plan_training(words, run_dir=f"{folder}/run", resume=None, **options)
        if planned.plan.nodes > 1:
            raise UserError("--fast-dev-run is for one node: --nnodes 1")
        code = supervise(planned.plan, report)
    if code == 0:
        say(f"{mark('✓', 'green')} three steps, evaluations and saves went well; its folder is removed")
    return code


def _folder_of(words: tuple[str, ...], run_dir: str | None, resume: str | None, trust: bool, **flags: Any) -> Path:
    """The run directory, chosen once for all nodes of an allocation."""
    config = load_trusted(*find_config(words, resume, run_dir), trust=trust)
    return choose_run(config, RunRequest(run_dir=run_dir, resume=resume, job=flags["rdzv_id"], nodes=1)).folder


@dataclass(frozen=True, kw_only=True)
class PlannedTraining:
    """What a command line means. `note` tells the user what may be unexpected."""

    found: "FoundConfig"
    config: "RunConfig"
    plan: LaunchPlan
    note: str | None


def plan_training(
    words: tuple[str, ...],
    run_dir: str | None,
    resume: str | None,
    allow_change: tuple[str, ...],
    trust: bool = False,
    profile: str | None = None,
    profile_ranks: str | None = None,
    **flags: Any,
) -> PlannedTraining:
    """Makes the plan that a command line asks for.

    Raises:
        UserError: when config, flags, host and run directory do not go together.
    """
    found = find_config(words, resume, run_dir)
    config = load_trusted(*found, trust=trust)
    from .. import foreign_files

    given, machine = Flags(**flags), host.look()
    # The job names the run only where a requeue of it would come back to this very command.
    place = machine.place if machine.place and not (given.standalone or machine.place.interactive) else None
    job, nodes, allowed = place.run_name if place else given.rdzv_id, count_nodes(given, machine), allow_change
    request = RunRequest(run_dir=run_dir, resume=resume, job=job, nodes=nodes, place=place, allowed=allowed)
    choice = choose_run(config, request)
    foreign_files.refuse(choice.folder, trusted=trust)
    passed_on = as_words({"allow_change": allow_change, "profile": profile, "profile_ranks": profile_ranks})
    plan = make_plan(
        config,
        given,
        machine,
        folder=choice.folder,
        program=program_for("dist_train", config) if found.of_run else ("-m", "dist_train"),
        arguments=(found.path, *found.overrides, "--run-dir", str(choice.folder), *passed_on),
        resume=choice.resume,
    )
    _check_profile(config, plan, profile, profile_ranks)
    return PlannedTraining(found=found, config=config, plan=plan, note=choice.note)


def _check_profile(config: "RunConfig", plan: LaunchPlan, steps: str | None, ranks: str | None) -> None:
    """Raises UserError as the ranks would, but before anything is started. Only they know the steps of an epoch."""
    if ranks is not None and steps is None:
        raise UserError(f"--profile-ranks {ranks} says of whom, and --profile of which steps: give both")
    duration = config.train.duration
    if steps is not None:
        parse_steps(steps, duration.steps(1, config.batch.global_size) if duration.unit != "epochs" else None)
    parse_ranks(ranks, plan.world_size, "--profile-ranks")


class FoundConfig(NamedTuple):
    """The config that a command line means, in the order in which `load_trusted` takes it."""

    path: str
    overrides: tuple[str, ...]
    of_run: bool
    """It is a run's own, which somebody else may have written."""


def find_config(words: tuple[str, ...], resume: str | None, run_dir: str | None) -> FoundConfig:
    """The config on the command line, or else the one of the run to resume.

    Raises:
        UserError: when there is neither.
    """
    from dist_train.config.recorded import is_recorded

    config, overrides = split_config(words)
    if config is not None:
        path, resumed = existing_config(config), config_of(resume, None)
        is_the_runs = is_recorded(Path(path)) or (resumed is not None and resumed.samefile(path))
        return FoundConfig(path, overrides, is_the_runs)
    found = config_of(resume, run_dir)
    if found is None and resume not in (None, "auto", "none") and not Path(str(resume)).exists():
        raise UserError(f"--resume {resume}: no such directory")
    return FoundConfig(existing_config(str(found) if found else None), overrides, of_run=True)
