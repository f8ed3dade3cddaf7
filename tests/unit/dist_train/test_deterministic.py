"""What a rank fixes before it computes."""

import subprocess
import sys

from launch.children import ROOT

COMPILES_LATER = """
import sys, torch
from launch.torch_patches import install_lazy_dynamo
install_lazy_dynamo()
from dist_train.config.source import load
from dist_train.worker import set_deterministic

set_deterministic(load("configs/digits.yaml", ["model={name: package.module:Net}"]))
assert torch.are_deterministic_algorithms_enabled()
assert "torch._inductor.config" not in sys.modules, "imported, which takes a second"
import torch._inductor.config
assert torch._inductor.config.deterministic
"""


def test_a_compiler_that_a_user_imports_later_is_deterministic_too():
    subprocess.run([sys.executable, "-c", COMPILES_LATER], check=True, cwd=ROOT)
