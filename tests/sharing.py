"""Which tests run in one worker of a parallel run, one after the other, because they share what is costly to make: a
cluster of SLURM, a wheel, a finished training.

By place, since the marker of pytest-xdist (xdist_group) groups nothing under pytest 9.2: it writes to a private
attribute of a test that is gone there.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    "tests/slurm/": "slurm",
    "tests/end_to_end/test_new.py": "wheel",
    "tests/end_to_end/test_package.py": "wheel",
}
"""By the beginning of a test's id."""
SHARED = (
    *("end_to_end/test_data_away", "end_to_end/test_elsewhere", "end_to_end/test_probe", "end_to_end/test_replay"),
    *("end_to_end/test_report", "distributed/test_broken", "distributed/test_cache", "distributed/test_huggingface"),
    *("distributed/test_predict", "distributed/test_replay", "distributed/test_shards", "docs/test_site"),
    "exactness/test_sources",
)
"""Files whose tests share a training, or a folder, that no others use."""
GROUPS |= {f"tests/{name}.py": name for name in SHARED}
REFERENCES = ("data/test_datasets", "data/test_table", "report/test_student", "tasks/test_classification")
REFERENCES += ("tasks/test_references",)
GROUPS |= {f"tests/unit/dist_train/{name}.py": "scikit-learn" for name in REFERENCES}
"""Files that import scikit-learn or SciPy: two seconds, which one worker is enough for."""


def group_of(nodeid: str) -> str | None:
    """The group of a test, if it has one."""
    return next((group for begin, group in GROUPS.items() if nodeid.startswith(begin)), None)


MIXED = ("tests/distributed", "tests/end_to_end", "tests/exactness", "tests/failures", "tests/faults")
"""Folders whose tests come in turn: some compute all the time, and others mostly wait."""


def places(nodeids: Sequence[str]) -> dict[str, tuple[int, float]]:
    """What to sort the tests by. Groups come first, so that no worker is left alone with one at the end."""
    folders = {name: "/".join(name.split("/")[:2]) for name in nodeids}
    sizes, seen, found = Counter(folders.values()), Counter[str](), {}
    for name, folder in folders.items():
        if group_of(name) is not None:
            found[name] = (0, 0.0)
        elif folder in MIXED:
            found[name] = (1, seen[folder] / sizes[folder])
        else:
            found[name] = (2, 0.0)
        seen[folder] += 1
    return found


class ByGroup(LoadScopeScheduling):
    """Hands a whole group to a worker, and each other test to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid) or nodeid


class Sharing:
    """The plugin of the process that hands out the tests."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> ByGroup:
        return ByGroup(config, log)
