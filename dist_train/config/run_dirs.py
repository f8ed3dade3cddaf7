"""What run directories are called, and which is the latest; for the launcher, and for ranks started without it."""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pydantic takes a tenth of a second, and not every launch has a config
    from dist_train.config.schema import RunConfig

LATEST = "latest"


def new_run_dir(config: "RunConfig") -> Path:
    """<run_root>/<name>/<UTC stamp>-<4 characters>. Makes nothing."""
    return new_folder(Path(config.run_root) / config.name)


def new_folder(parent: Path) -> Path:
    """A name below `parent` that is free: <UTC stamp>-<4 characters>. Makes nothing."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"  # without those that look alike
    return parent / f"{stamp}-{''.join(secrets.choice(alphabet) for _ in range(4))}"


def latest_run_dir(config: "RunConfig") -> Path | None:
    """What <run_root>/<name>/latest points to, if anything."""
    link = Path(config.run_root) / config.name / LATEST
    return link.parent / os.readlink(link) if link.is_symlink() and link.exists() else None


def point_latest_at(run_dir: Path) -> None:
    """Makes `latest` beside `run_dir` point to it; other readers see the old one or the new one."""
    temporary = run_dir.parent / f".{LATEST}-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run_dir.name)
    os.replace(temporary, run_dir.parent / LATEST)
