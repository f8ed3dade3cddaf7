"""The script of a job, as a person would write it: #SBATCH lines, the arguments, and the body that all scripts share.

Values come from the user, so each is checked and quoted here. The #SBATCH lines are read back as sbatch reads them and
compared with what was meant; everything else is quoted for bash.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.config.schema import SlurmConfig
from dist_train.errors import UserError

from . import arrays

BODY = Path(__file__).with_name("body.sh")
_BARE = re.compile(r"[A-Za-z0-9_.,:=@+/%-]*")
_RESOURCES = ("gpus_per_node", "cpus_per_task", "mem", "time", "partition", "account", "qos", "constraint")
_REFUSED = "\"'\\$`#%"
"""Characters with a meaning to sbatch or a shell; `%` begins a pattern in a log's name."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """A job that trains: one run, or one in each task of an array."""

    name: str
    """Of the job in the queue; a run's name (letters, digits, `._-`)."""
    folder: Path
    """The working directory."""
    logs: Path
    """Folder of its log: JOBID.log, or ARRAYJOB_TASK.log."""
    slurm: SlurmConfig
    """The resources it asks for; `array` is not read."""
    tasks: Mapping[int | None, Sequence[str]]
    """The arguments of `dist-train train`, by task number; a job that is no array has the one key None."""
    python: str
    """The Python to use on the nodes, unless `slurm` names one."""
    path: str | None = None
    """Folder to import dist-train from, if it is not installed."""
    at_once: int | None = None
    """Tasks that may run at a time."""

    @property
    def log(self) -> str:
        """The pattern for sbatch: %j is the job's id, %A_%a those of an array and its task."""
        return str(self.log_of("%j" if None in self.tasks else "%A_%a"))

    def log_of(self, job: str) -> Path:
        """The log of a job, or of a task of an array (`12_3`)."""
        return self.logs / f"{job}.log"


def render_script(script: Script) -> str:
    """The text of the script.

    Raises:
        UserError: when a value cannot be written into it.
    """
    wanted = list(_options(script))
    head = ["#!/bin/bash", "# Written by `dist-train slurm`. sbatch takes it by hand too."]
    blocks = (head, [_directive(*option) for option in wanted], _settings(script), _arguments(script.tasks))
    text = "\n\n".join("\n".join(block) for block in blocks) + "\n"
    if directives(text) != wanted:
        raise AssertionError(f"sbatch would read {directives(text)} where {wanted} was meant")
    return text + "\n" + BODY.read_text(encoding="utf-8")


# ---------------------------------------------------------------- for sbatch


def _options(script: Script) -> Iterator[tuple[str, str | None]]:
    slurm = script.slurm
    for folder in (script.folder, script.logs):
        if not folder.is_absolute():
            raise AssertionError(f"{folder} is relative")
        bad = sorted({character for character in str(folder) if not character.isprintable() or character in _REFUSED})
        if bad:
            raise UserError(f"the folder {str(folder)!r} cannot be given to sbatch: it has {' '.join(map(repr, bad))}")
    yield "--job-name", script.name
    yield "--chdir", str(script.folder)
    yield "--output", script.log
    yield "--open-mode", "append"
    yield "--nodes", str(slurm.nodes)
    yield "--ntasks-per-node", "1"
    for key in _RESOURCES:
        if (chosen := getattr(slurm, key)) is not None:
            yield f"--{key.replace('_', '-')}", str(chosen)
    if None not in script.tasks:
        yield "--array", arrays.format_tasks((task for task in script.tasks if task is not None), script.at_once)
    yield "--signal", f"B:USR1@{slurm.signal}"
    yield "--requeue", None
    for option in slurm.options:
        name, equals, value = option.partition("=")
        yield name, value if equals else None


def _directive(name: str, value: str | None) -> str:
    if value is None:
        return f"#SBATCH {name}"
    return f"#SBATCH {name}={value}" if _BARE.fullmatch(value) else f'#SBATCH {name}="{value}"'


def directives(text: str) -> list[tuple[str, str | None]]:
    """The #SBATCH options as sbatch reads them: up to the first command, with quotes, backslashes and # comments."""
    found: list[tuple[str, str | None]] = []
    for line in text.split("\n"):
        if line.startswith("#SBATCH"):
            for word in shlex.split(line[len("#SBATCH") :], comments=True):
                name, equals, value = word.partition("=")
                found.append((name, value if equals else None))
        elif line.strip() and not line.startswith("#"):
            break
    return found


# ---------------------------------------------------------------- for bash


def _settings(script: Script) -> Iterator[str]:
    slurm = script.slurm
    yield "# Words before the command on every node; the Python there; a file to read first, with NCCL variables, say."
    prefix = [os.path.expanduser(word) for word in shlex.split(slurm.prefix)]  # bash does not expand a quoted `~`
    yield f"prefix=({shlex.join(_one_line(word, 'slurm.prefix') for word in prefix)})"
    yield f"python={shlex.quote(_one_line(slurm.python or script.python, 'slurm.python'))}"
    site = str(script.folder / slurm.site) if slurm.site else ""
    yield f"site={shlex.quote(_one_line(site, 'slurm.site'))}"
    yield f"# Seconds that saving may take after a signal: less than the {slurm.signal} of --signal above."
    yield f"grace={slurm.signal * 3 // 4}"
    if script.path is not None:
        path = shlex.quote(_one_line(script.path, "the path of dist-train"))
        yield f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"


def _arguments(tasks: Mapping[int | None, Sequence[str]]) -> Iterator[str]:
    if None in tasks:
        yield f"set -- {_words(tasks[None])}"
        return
    yield "case $SLURM_ARRAY_TASK_ID in"
    yield from (f"{number}) set -- {_words(words)} ;;" for number, words in tasks.items())
    yield '*)\n    echo "there is no task $SLURM_ARRAY_TASK_ID" >&2\n    exit 2\n    ;;\nesac'


def _words(words: Sequence[str]) -> str:
    return shlex.join(_one_line(word, "the argument") for word in words)


def _one_line(value: str, what: str) -> str:
    """Refuses control characters; quoting makes every other character harmless.

    Raises:
        UserError: when there are control characters in it.
    """
    if not value.isprintable():
        raise UserError(f"{what} {value!r} cannot be written into a script: it has control characters")
    return value
