"""How files and ranks are written where a person reads them."""

import site
import sysconfig
from pathlib import Path

_HOME = Path(__file__).resolve().parents[2]


def is_foreign(file: str) -> bool:
    folders = [sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages()]
    folders += [str(_HOME / "launch"), str(_HOME / "dist_train")]
    return file.startswith("<") or "site-packages" in file or any(Path(file).is_relative_to(place) for place in folders)


def short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def ranges(ranks: list[int]) -> str:
    """`[0, 1, 2, 5]` as `0-2, 5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
