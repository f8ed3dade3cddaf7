"""From a config to a job in the queue: first the script, which a dry run prints, then its submission."""

import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.config.dump import to_yaml
from dist_train.config.schema import RunConfig, SlurmConfig
from dist_train.config.shares import at_least, check_fits
from dist_train.config.trust import powers
from dist_train.errors import ExitCode, UserError, telling_why
from dist_train.rundir.codec import write_json
from dist_train.rundir.layout import RunDir
from dist_train.rundir.ownership import refuse_owned

from ..children import ROOT
from ..console import mark, say
from ..job import SubmittedJob, jobs_of
from . import queue
from .place import NAME
from .render import Script, directives, render_script

_OTHER_NAMES = {"TIME": "TIMELIMIT", "ARRAY": "ARRAY_INX", "MEM": "MEM_PER_NODE"}
"""Options whose environment variable for sbatch has another name."""
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run directory that a job trains in."""

    config: RunConfig
    folder: Path
    """Its run directory, absolute."""
    options: tuple[str, ...] = ()
    """Options of `dist-train train` besides --run-dir."""

    @property
    def config_file(self) -> Path:
        """The config at the time of submission: later edits of the user's file do not change it."""
        return RunDir(self.folder).job(NAME).with_name("config.yaml")

    @property
    def arguments(self) -> tuple[str, ...]:
        # On the nodes the user may have another home folder, with another list of what is trusted.
        trusted = ["--trust"] * bool(powers(self.config))
        return (str(self.config_file), "--run-dir", str(self.folder), *self.options, *trusted)


Trainings = Mapping[int | None, Training]
"""What a job trains: one under the key None, or one for each task of an array."""


def script_of(config: RunConfig, runs: Trainings, folder: Path, at_once: int | None, cwd: Path) -> Script:
    """The script of a job that trains `runs`, as the `slurm` of `config` has it.

    Args:
        folder: the run directory, or the parent of an array's; its `slurm/` gets the script and the logs.
        at_once: tasks that may run at a time.

    Raises:
        UserError: when one of the runs could not start.
    """
    for run in runs.values():
        _check_startable(run, config.slurm)
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")]
    return Script(
        name=config.name,
        folder=cwd,
        logs=folder / NAME,
        slurm=config.slurm,
        tasks={task: run.arguments for task, run in runs.items()},
        python=sys.executable,
        path=None if ROOT.resolve() in installed else str(ROOT.resolve()),
        at_once=at_once,
    )


def _check_startable(run: Training, slurm: SlurmConfig) -> None:
    """Checks what would make the job fail at its start, as far as it can be known now.

    Raises:
        UserError: when the ranks do not fit the batch, or (exit code 3) the run is already running or queued.
    """
    if slurm.gpus_per_node is not None:
        ranks = slurm.nodes * int(str(slurm.gpus_per_node).rpartition(":")[2])
        check_fits(run.config, ranks, at_least(run.config, ranks))
    if run.folder.is_dir():
        refuse_owned(run.folder.resolve())
    for entry in (queue.look(jobs_of(run.folder)) or {}).values():
        if entry.active:
            queued = f"{run.folder} is in the queue already, as job {entry.job}: {entry}"
            raise UserError(f"{queued}. To end that: dist-train stop {run.folder}", ExitCode.OWNED)


def submit(script: Script, runs: Trainings) -> list[SubmittedJob]:
    """Writes script and configs into the run directories, gives the script to sbatch, and records the job in each.

    Raises:
        UserError: when it cannot be done; everything created for it is removed.
    """
    text = render_script(script)
    path = script.logs / "job.sbatch"
    made = _make([script.logs, *(run.config_file.parent for run in runs.values())])
    try:
        for run in runs.values():
            run.config_file.write_text(to_yaml(run.config), encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        job = sbatch(path, [name for name, _ in directives(text)])
    except BaseException:
        for folder in reversed(made):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    records = []
    for task, run in runs.items():
        own = job if task is None else f"{job}_{task}"
        record = SubmittedJob(
            job=own, run_dir=str(run.folder), log=str(script.log_of(own)), script=str(path), submitted=time.time()
        )
        write_json(RunDir(run.folder).job(NAME), record)
        records.append(record)
    return records


def _make(folders: Sequence[Path]) -> list[Path]:
    """Creates the folders. Returns those that did not exist, parents first."""
    made: list[Path] = []
    for folder in folders:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        with telling_why(f"cannot make {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        made += reversed(missing)
    return made


def say_queued(script: Script, records: Sequence[SubmittedJob], *more: str) -> str:
    """Tells what was submitted, and of an array `more`. Returns the id of the job, or of the array."""
    job, _, task = records[0].job.partition("_")
    tasks = f": {len(records):,} task{'s' * (len(records) > 1)}" if task else ""
    alone = (f"  run  {records[0].run_dir}", f"  log  {records[0].log}")
    for line in (*more, f"  logs  {script.logs}/{job}_TASK.log") if task else alone:
        tasks += f"\n{line}"
    say(f"{mark('✓', 'green')} job {job} is in the queue{tasks}")
    return job


# ---------------------------------------------------------------- sbatch


def sbatch(script: Path, options: Iterable[str] = ()) -> str:
    """Puts a script into the queue; returns the job's id.

    Args:
        options: those that the script sets, such as `--time`: no SBATCH_TIMELIMIT in the environment overrides them.

    Raises:
        UserError: when there is no sbatch, or it refuses, with what it says.
    """
    try:
        done = queue.call("sbatch", "--parsable", str(script), environment=sbatch_environment(options))
    except FileNotFoundError:
        raise UserError("no sbatch in PATH: call this where jobs are submitted, or see it with --dry-run") from None
    match = re.match(r"([0-9]+)(;\S*)?$", done.stdout.strip())
    if done.returncode or match is None:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(f"sbatch refuses: {said[-1].removeprefix('sbatch: error: ')}")
    return match[1]


def sbatch_environment(options: Iterable[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for sbatch, without the variables of a job around us and those that would override `options`."""
    names = (option.removeprefix("--").replace("-", "_").upper() for option in options)
    beaten = {"SBATCH_WAIT", "SBATCH_NO_REQUEUE", *(f"SBATCH_{_OTHER_NAMES.get(name, name)}" for name in names)}
    inside = "SLURM_JOB_ID" in environ
    return {
        name: value
        for name, value in environ.items()
        if name not in beaten and not (inside and name.startswith("SLURM_") and name not in _KEPT)
    }
