"""Other code that a config makes a run execute, and which of it this user has allowed before. No torch here.

A config file that the user gives is trusted. The config that a run or a checkpoint carries may come from somebody else:
what it would import, or have a job's shell execute, is allowed only if the user's trusted.json holds its hash.
Trainings add the hashes of what the user gave them, so that their runs may be copied and moved; anything else needs
--trust once.

    {"version": 1, "trusted": {"<SHA-256 of what it is>": {"what": "model birds.nets:Net", "since": 1795366086}}}
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config.problems import printable
from dist_train.config.schema import Custom, RunConfig, is_component
from dist_train.errors import UserError
from dist_train.rundir.files import write_atomic
from dist_train.rundir.reading import read_json

VERSION = 1
MAX_ENTRIES = 5_000
"""The oldest make way."""
LOCK_TIMEOUT_S = 2.0
"""How long to wait for other writers. After it, an entry of theirs may be lost, and needs --trust again."""
LINK, FOLDER = "the link", "in the folder"
"""A link that leads out of a run, and where the points of a sweep run, which is where Python looks for modules."""
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Power:
    """One thing that runs code other than ours."""

    where: str
    """`model`, `slurm.site`, LINK or FOLDER."""
    what: str
    """`package.module:Thing`, or the value of the key."""
    args: Any = None

    def __str__(self) -> str:
        return f"{self.where} {printable(self.what, 4096 if self.where == LINK else 120)}"

    @property
    def hash(self) -> str:
        """Hash of what is called and with which arguments; no other keys of a config change it."""
        content = {"where": self.where, "what": self.what, "args": self.args}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def powers(config: RunConfig, *, job: bool = False) -> list[Power]:
    """What a run with this config would import; for a `job`, also what its script would execute."""
    found = [power for key, section in config if isinstance(section, Custom) for power in _of_component(key, section)]
    for one in config.callbacks:
        found += _of_component("callbacks", one)
    if isinstance(other := config.eval.data, Custom):
        found += _of_component("eval.data", other)
    for key, data in (("data", config.data), ("eval.data", other)):
        if decode := getattr(data, "decode", None):
            found.append(Power(where=f"{key}.decode", what=decode))
    for name, section in config if job else ():
        for key in getattr(section, "executes", ()):
            words = value if isinstance(value := getattr(section, key), list) else [value]
            found += [Power(where=f"{name}.{key}", what=word) for word in words if word]
    return found


def _of_component(where: str, component: Custom) -> list[Power]:
    """It, and what among its arguments is built as well."""
    found, ahead = [Power(where=where, what=component.name, args=component.args)], [*component.args.values()]
    for value in ahead:
        if is_component(value):
            found += _of_component(f"{where}.args", Custom.model_validate(value))
        elif isinstance(value, dict | list):
            ahead += value.values() if isinstance(value, dict) else value
    return found


def of_recorded(recorded: RunConfig, whole: RunConfig, *, job: bool = False) -> list[Power]:
    """What a config that came with a run would execute.

    Args:
        recorded: as it came.
        whole: with the overrides of the command line, which are trusted.
    """
    theirs = {(power.where, power.what) for power in powers(whole, job=job)}
    return [power for power in powers(recorded, job=job) if (power.where, power.what) in theirs]


def require(asked: list[Power], source: str, *, given: bool, note: Note) -> None:
    """Refuses code from elsewhere that is not trusted.

    Args:
        source: what it came with, for the message.
        given: --trust, which is remembered.
        note: called with one line if the list cannot be read or written.

    Raises:
        UserError: (exit 2) when something is not trusted; nothing has been run then.
    """
    path = _path()
    held = _read(path, note) if asked and path is not None else {}
    unknown = [power for power in asked if power.hash not in held]
    if not unknown:
        return
    if given:
        if (why := remember(unknown)) is not None:
            note(f"--trust counts for this time alone: {why}")
        return
    runs = any("." in power.where or power.where == FOLDER for power in unknown)
    verb = "write through" if any(power.where == LINK for power in unknown) else "run" if runs else "import"
    raise UserError(
        f"{printable(source, 300)} would {verb} {' and '.join(map(str, unknown))}, which you have not let run before: "
        "if you know whose that is, say --trust"
    )


def remember(found: Iterable[Power]) -> str | None:
    """Records that these are trusted. Returns why it could not; never raises."""
    new = {power.hash: {"what": str(power), "since": int(time.time())} for power in found}
    path = _path()
    if path is None:
        return "there is no home folder to remember it in" if new else None
    try:
        if new.keys() - _read(path, lambda line: None).keys():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(path):
                _write(path, {**_read(path, lambda line: None), **new})
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    return None


def _path() -> Path | None:
    """This user's trusted.json; None if there is no place for it."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not folder.is_absolute():  # a user id that is in no list of users leaves the ~ as it is
        folder = Path(os.environ["HOME"] if "HOME" in os.environ else os.path.expanduser("~")) / ".config"
    return folder / "dist-train" / "trusted.json" if folder.is_absolute() else None


def _read(path: Path, note: Note) -> dict[str, Any]:
    """The entries by hash; none if there is no file, or a damaged one, which is noted."""
    try:
        content = read_json(path)
        entries = content["trusted"]
        if content["version"] != VERSION or not isinstance(entries, dict):
            raise ValueError("not what this version writes")
        return {key: entry for key, entry in entries.items() if isinstance(entry, dict)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "damaged"
        note(f"{path} cannot be read ({reason}): nothing counts as trusted")
        return {}


def _write(path: Path, entries: dict[str, Any]) -> None:
    """Replaces the file by a synced one that only its owner can read."""

    def since(key: str) -> float:
        return found if isinstance(found := entries[key].get("since"), int | float) else 0.0

    newest = {key: entries[key] for key in sorted(entries, key=since)[-MAX_ENTRIES:]}
    write_atomic(path, json.dumps({"version": VERSION, "trusted": newest}, indent=1) + "\n", mode=0o600)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Serializes writers, if the file system has locks; otherwise the last one wins."""
    lock = os.open(
        path.with_name(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
    )
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(lock)
