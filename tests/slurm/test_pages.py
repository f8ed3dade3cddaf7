"""The console blocks of the documents about SLURM, on the real cluster: tests/docs/console.py says how."""

import pytest

from tests.docs.given import ROOT
from tests.docs.test_console import UNDER_SLURM, run_page
from tests.slurm.cluster import Cluster
from tests.slurm.training import ENVIRONMENT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("page", sorted(UNDER_SLURM))
def test_the_console_blocks_of_a_page_do_what_it_shows(page, slurm_cluster: Cluster, tmp_path):
    variables = {name: slurm_cluster.environment[name] for name in ("SLURM_CONF",)}
    run_page(ROOT / page, tmp_path / "work", **ENVIRONMENT, **variables)
