"""`dist-train slurm`."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dist_train.config.stdout import tell
from dist_train.errors import UserError

from .. import completion
from ..configs import load_trusted, remember_configs
from ..console import say
from ..plan.flags import as_words
from ..plan.run_choice import RunRequest, choose_run
from .common import RESUME, json_option, launch_command, trust_option, with_options
from .train import find_config

if TYPE_CHECKING:
    from ..slurm.render import Script
    from ..slurm.submission import Trainings

EPILOG = """\b
The options from --nodes to --array are keys of the config's section `slurm`, which has more: signal, prefix (a
container), python, site (a file with NCCL variables), options (more of sbatch's). docs/slurm.md tells the rest.

\b
An array trains once for each task, in a run directory of its own; `{task}` in an override is the task's number:
  dist-train slurm configs/digits.yaml 'seed={task}' --array 0-7"""


KEYS = {
    "nodes": ("N", "Nodes."),
    "gpus-per-node": ("N|TYPE:N", "GPUs, and so ranks, on each."),
    "cpus-per-task": ("N", "Cores on each."),
    "mem": ("SIZE", "Memory on each, such as 64G."),
    "time": ("TIME", "Limit of one start, such as 12:00:00; the job is requeued until the training is done."),
    "partition": ("NAME", "Where to queue."),
    "account": ("NAME", "Who pays."),
    "qos": ("NAME", "Quality of service."),
    "constraint": ("FEATURES", "What the nodes must have."),
}
"""Keys of the config's section `slurm` that are also options: metavar and help text of each."""
key_options = with_options(
    *(click.option(f"--{name}", metavar=metavar, help=text) for name, (metavar, text) in KEYS.items())
)


@launch_command(epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[CONFIG] [a.b=c]...", shell_complete=completion.words)
@key_options
@click.option("--array", metavar="TASKS", help="A run for each task, such as 0-7 or 0-7%2 (two at a time).")
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks on each node. Default: its GPUs, or cores.")
@click.option("--max-restarts", type=click.IntRange(0), default=0, help="New starts after a crash, inside the job.")
@click.option("--run-dir", type=click.Path(file_okay=False), help="Where the run lives. Default: a new directory.")
@click.option("--resume", help="What it goes on from, as for dist-train train.", **RESUME)
@click.option("--allow-change", multiple=True, metavar="KEY", help="As for dist-train train.")
@trust_option
@click.option("--dry-run", is_flag=True, help="Print the script. Submits nothing, writes nothing.")
@click.option("--follow", is_flag=True, help="Show the log as it grows, and end with the job. Ctrl-C leaves the job.")
@json_option("A JSON list of the jobs on stdout, in place of the job's id.")
def command(words: tuple[str, ...], dry_run: bool, follow: bool, as_json: bool, **options: Any) -> None:
    """Submit CONFIG as a SLURM job that comes back after time limits, preemptions and lost nodes."""
    script, runs = plan_job(words, **options)
    if follow and None not in runs:
        raise UserError("--follow follows one job; how the tasks of an array are doing: dist-train runs")
    from ..slurm import submission
    from ..slurm.render import render_script

    if dry_run:
        tell(render_script(script))
        return
    records = submission.submit(script, runs)
    remember_configs((run.config for run in runs.values()), job=True)
    job = submission.say_queued(script, records, f"  runs  {Path(records[0].run_dir).parent}/TASK")
    tell(json.dumps([asdict(record) for record in records], indent=2) if as_json else job)
    if follow:
        from ..slurm.follow import follow as follow_job

        sys.exit(follow_job(records[0]))


def plan_job(
    words: tuple[str, ...],
    run_dir: str | None,
    resume: str | None,
    allow_change: tuple[str, ...],
    trust: bool = False,
    **flags: Any,
) -> "tuple[Script, Trainings]":
    """From the command line to the script and the trainings of its tasks. Creates nothing.

    Raises:
        UserError: when it cannot be done.
    """
    from .. import foreign_files
    from ..slurm import submission
    from ..slurm.arrays import parse_tasks

    given = {flag: flags.pop(flag) for flag in ("nproc_per_node", "max_restarts")}
    options = as_words({"allow_change": allow_change, **given})
    path, overrides, of_run = find_config(words, resume, run_dir)
    overrides = (*overrides, *as_overrides(flags))
    config = load_trusted(path, [word.replace("{task}", "0") for word in overrides], of_run, trust=trust, job=True)
    numbers, at_once = parse_tasks(str(config.slurm.array)) if config.slurm.array is not None else ([None], None)
    choice = choose_run(config, RunRequest(run_dir=run_dir, resume=resume, job=None, nodes=1))
    if choice.note:
        say(choice.note)
    if choice.resume not in ("auto", "none"):
        options += ["--resume", str(Path(choice.resume).absolute())]
    folder = choice.folder.absolute()
    runs: dict[int | None, submission.Training] = {}
    for task in numbers:
        words_of_task = [word.replace("{task}", str(task)) for word in overrides]
        own = config if task is None else load_trusted(path, words_of_task, of_run, trust=trust, job=True)
        place = folder if task is None else folder / str(task)
        runs[task] = submission.Training(config=own, folder=place, options=tuple(options))
        foreign_files.refuse(place, trusted=trust)
    return submission.script_of(config, runs, folder, at_once, Path.cwd()), runs


def as_overrides(options: Mapping[str, str | None]) -> Iterator[str]:
    """Those given, as overrides: counts are written plainly, text is quoted so that it stays text."""
    for key, value in options.items():
        if value is not None:
            is_count = key in ("nodes", "cpus_per_task") and re.fullmatch("[0-9]{1,18}", value)
            yield f"slurm.{key}={value if is_count else json.dumps(value)}"
