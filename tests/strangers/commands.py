"""The commands that read a run, each in a process forked from one that has torch loaded, so that it takes no second.

All of a command runs, with two differences: what it would execute as a new `python -m MODULE` is forked here instead,
and its ranks are one rank without the agent above it (those that doctor measures are left out). With `--real` it is the
program as a user starts it.
"""

import contextlib
import importlib
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALLOWED = {0, 1, 2, 3, 4, 11, 12, 13, 14, 75}
"""Exit codes that may come of a forged run; 10 would mean code of the user's, and 15 a hang."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "predict": ("predict", "run", "image.png"),
    "predict a checkpoint": ("predict", "checkpoint", "image.png"),
    "export": ("export", "run", "image.png", "--to", "exported.safetensors"),
    "evaluate": ("evaluate", "run", "--nproc-per-node", "1"),
    "evaluate a checkpoint": ("evaluate", "checkpoint", "eval.batch_size=16", "--nproc-per-node", "1"),
    "replay": ("replay", "run", "--from-step", "1", "--to-step", "2", "--nproc-per-node", "1"),
    "fingerprint": ("fingerprint", "run"),
    "fingerprint a checkpoint": ("fingerprint", "checkpoint"),
    "checkpoints": ("checkpoints", "run"),
    "checkpoints --verify": ("checkpoints", "run", "--verify"),
    "cache": ("cache", "run"),
    "runs": ("runs", "--root", "."),
    "report": ("report", "run", "--out", "report.html"),
    "compare": ("compare", "run", "../base/run", "--html", "compare.html"),
    "stop": ("stop", "run"),
    "doctor": ("doctor", "run/config.yaml", "--nproc-per-node", "1"),
    "train --dry-run": ("train", "--resume", "run", "--dry-run", "--nproc-per-node", "1"),
    "slurm --dry-run": ("slurm", "--resume", "run", "--dry-run"),
    "sweep --dry-run": ("sweep", "run/config.yaml", "--over", "seed=1,2", "--dry-run"),
    "train --resume a checkpoint": ("train", "c.yaml", "--resume", "checkpoint", "--nproc-per-node", "1"),
    "train --resume": ("train", "--resume", "run", "train.stop_after=1 steps", "--nproc-per-node", "1"),
}
"""The last one changes the run."""
MEMORY = 24 * 2**30
"""Bytes of addresses: a forged size must not take the machine's memory."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a command."""

    code: int | None
    """None: it had to be ended."""
    output: str

    def problems(self, canary: Path) -> list[str]:
        """What must not happen, in a line each."""
        found = []
        if canary.exists():
            found.append("code of the stranger's was run")
        if self.code is None:
            return [*found, "it hangs"]
        if "Traceback" in self.output or '  File "' in self.output:
            found.append("a traceback")
        if self.code not in ALLOWED:
            found.append(f"exit code {self.code}")
        return found


PRELOADED = (
    "torch._dynamo",
    "torch._inductor.config",
    "torchvision.io",
    "torchvision.transforms.v2",
)
PRELOADED += (
    "wandb",
    "dist_train.commands.cache",
    "dist_train.commands.describe",
    "dist_train.commands.evaluate",
    "dist_train.commands.predict",
)
PRELOADED += (
    "dist_train.commands.export",
    "dist_train.commands.replay",
    "dist_train.commands.torch_facts",
    "dist_train.worker",
)
PRELOADED += (
    "launch.doctor.examine",
    "launch.plan.dry_run",
    "launch.foreign_files",
    "launch.plan.run_choice",
    "launch.slurm.render",
)
PRELOADED += ("launch.slurm.submission", "launch.supervisor", "launch.sweep.points")


def preload() -> None:
    """What the processes to be forked have in common."""
    from launch.cli import COMMANDS as ALL

    for name in (*PRELOADED, *(f"launch.commands.{command}" for command in ALL)):
        importlib.import_module(name)


def run(words: Sequence[str], folder: Path, canary: Path, patience: float) -> Ended:
    """A command, to its end or for `patience` seconds."""

    def command() -> None:
        os.chdir(folder)
        sys.path[:0] = [str(folder)]  # as for `python -m`
        os.environ["DIST_TRAIN_CANARY"] = str(canary)
        _without_new_programs()
        from launch.cli import main

        main(list(words))

    output = folder / ".output"
    code = _forked(command, output, patience)
    return Ended(code=code, output=output.read_text(errors="replace"))


def run_real(words: Sequence[str], folder: Path, canary: Path, patience: float) -> Ended:
    """The program as a user starts it."""
    environment = {**os.environ, "DIST_TRAIN_CANARY": str(canary), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "dist-train"), *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as started:
        try:
            said, _ = started.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            return Ended(code=None, output="")
    return Ended(code=started.returncode, output=said.decode(errors="replace"))


def _forked(function: Callable[[], object], output: Path | None, patience: float | None) -> int | None:
    """The exit code of a process that runs it; None where it had to be killed."""
    assert threading.active_count() == 1
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be(function, output)
    watched = os.pidfd_open(pid)
    try:
        ended = bool(select.select([watched], [], [], patience)[0])
    finally:
        os.close(watched)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # and what it may have left
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def _be(function: Callable[[], object], output: Path | None) -> None:
    """In the forked process; never returns."""
    code = 1
    try:
        if output is not None:
            os.setsid()
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            function()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _module(name: str, arguments: Sequence[str]) -> None:
    sys.argv = [name, *arguments]
    sys.modules.pop(name, None)  # it may have been imported as somebody's library
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _without_new_programs() -> None:
    import launch.commands.checkpoints
    import launch.commands.export
    import launch.commands.fingerprint
    import launch.commands.predict
    import launch.commands.train
    import launch.doctor.ranks
    import launch.supervisor

    commands = launch.commands
    for module in (commands.checkpoints, commands.export, commands.fingerprint, commands.predict):
        module.become = _module  # type: ignore[attr-defined]
    launch.supervisor.supervise = launch.doctor.ranks.supervise = _one_rank  # type: ignore[assignment]
    real = subprocess.run

    def started(command: Any, *given: Any, **named: Any) -> Any:
        command = [word for word in command if word != "-P"]
        if command[:2] != [sys.executable, "-m"]:
            return real(command, *given, **named)
        place = Path(f".said-{os.getpid()}")
        code = _forked(lambda: (_to(place), _module(command[2], command[3:])), None, None)
        said = place.read_text(errors="replace") if place.exists() else ""
        lines = said.splitlines(keepends=True)
        ours = [line for line in lines if line.startswith("{")]
        rest = [line for line in lines if not line.startswith("{")]
        return subprocess.CompletedProcess(command, code, "".join(ours), "".join(rest))

    subprocess.run = started  # type: ignore[assignment]


def _to(place: Path) -> None:
    file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _one_rank(plan: Any, at_end: Any = None, server: Any = None) -> int:
    """In place of the launcher's supervisor: the program, as `python -m MODULE` runs it."""
    from dist_train.rundir.ownership import refuse_owned
    from dist_train.rundir.runs import make_run_dir

    if plan.program[-1].endswith("bench_ranks"):  # of doctor; nothing that is in a run reaches them
        return 0
    if plan.resume is not None:
        refuse_owned(plan.folder.resolve())
    make_run_dir(plan.folder)
    os.environ.update(plan.environment)
    words = [*plan.arguments, *(["--resume", plan.resume] if plan.resume is not None else [])]
    return _forked(lambda: _module(plan.program[-1], words), None, None) or 0
