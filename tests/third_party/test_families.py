"""Models of timm and transformers by name: a step on 1 and 2 ranks by `dist-train train`, equal or refused as said.

    python -m pytest -m long tests/third_party        # in an environment that has the two, and this package

Nothing is downloaded. One family in `make test` would need the libraries in the test extra; what of ours they have
needed is tested without them: tests/unit/dist_train/config/test_imports.py.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.distributed.training import result
from tests.third_party.families import FAMILIES, Family

ROOT = Path(__file__).parents[2]
LIBRARIES = ("timm", "transformers")


def test_twenty_families_are_listed_of_each_library_at_least_ten():
    names = [family.model["name"].partition(":")[0] for family in FAMILIES.values()]
    assert all(names.count(library) >= 10 for library in LIBRARIES) and set(names) == set(LIBRARIES)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_takes_a_step_and_ends_in_the_same_bits_on_one_rank_and_two(name, tmp_path):
    family = FAMILIES[name]
    library = family.model["name"].partition(":")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{sys.executable} has no {library}")
    if family.refused is not None:
        done = train(family, 1, tmp_path)
        assert done.returncode == 2 and family.refused in done.stderr + done.stdout, done
        return
    for key in family.needs:  # what it needs, it needs
        without = train(family, 1, tmp_path, needs=tuple(other for other in family.needs if other != key))
        assert without.returncode == 2 and key.partition("=")[0] in without.stderr + without.stdout, without
    for ranks in (1, 2):
        done = train(family, ranks, tmp_path)
        assert done.returncode == 0, done
    assert result(tmp_path / "1") == result(tmp_path / "2")


def train(
    family: Family, ranks: int, folder: Path, *, needs: tuple[str, ...] | None = None
) -> subprocess.CompletedProcess[str]:
    """`dist-train train`, as a user types it. With other `needs` than the family's, in a run of its own."""
    (folder / "c.yaml").write_text(yaml.safe_dump(family.config()))
    run = folder / (str(ranks) if needs is None else "without")
    command = [
        sys.executable,
        "-m",
        "launch",
        "train",
        str(folder / "c.yaml"),
        *(family.needs if needs is None else needs),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    flags = ["--nproc-per-node", str(ranks), "--run-dir", str(run)]
    return subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True)
