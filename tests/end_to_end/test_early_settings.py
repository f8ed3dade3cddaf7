"""A script that sets variables for torch before it imports it has them heard, as under torchrun."""

from tests.end_to_end.test_run import OURS, go

REPORTS = """
import os, sys
preloaded = "torch" in sys.modules
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["MASTER_PORT"] = ""
{early}
import torch
print(preloaded, torch.get_num_threads(), *torch._logging._internal.log_state.log_qname_to_level)
"""
SETS = 'os.environ["OMP_NUM_THREADS"] = "1"; os.environ["TORCH_LOGS"] = "dtensor"'


def test_variables_that_a_script_sets_before_torch_are_heard(tmp_path):
    (tmp_path / "train.py").write_text(REPORTS.format(early=SETS))
    done = go(tmp_path, *OURS, "train.py")
    assert done.stdout.split()[:2] == ["False", "1"] and "torch.distributed.tensor" in done.stdout
    said = "! not preloaded (train.py:5 sets OMP_NUM_THREADS before it imports torch): each rank starts by itself"
    assert done.stderr.count(said) == 1
    by_hand = go(tmp_path, *OURS, "--start", "preload", "train.py")
    assert by_hand.stdout.split()[0] == "True" and "not preloaded" not in by_hand.stderr


def test_a_script_that_sets_what_is_read_later_is_preloaded(tmp_path):
    (tmp_path / "train.py").write_text(REPORTS.format(early=""))
    done = go(tmp_path, *OURS, "train.py")
    assert done.stdout.split()[0] == "True" and "not preloaded" not in done.stderr
