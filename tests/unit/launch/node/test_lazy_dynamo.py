"""The compiler's front comes when it is needed (launch/torch_patches.py). Each program in a process of its own."""

import subprocess
import sys

import pytest

BEGIN = """
import sys
import torch, torch.distributed as dist
from torch import nn
from launch.torch_patches import install_lazy_dynamo

def is_real():
    return "torch._dynamo.eval_frame" in sys.modules

def train(compiled=False):
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    optimizers = [kind(model.parameters(), lr=0.1) for kind in (torch.optim.SGD, torch.optim.AdamW)]
    def step():
        model(torch.ones(5, 3)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    step = torch.compile(step, backend="eager") if compiled else step
    for _ in range(3):
        step()
    return torch.cat([value.flatten() for value in model.parameters()]).tolist()

def meet():
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
"""


END = """
import os
sys.stdout.flush()
os._exit(0)  # at the end of Python, torch aborts now and then (pytorch/pytorch#190489)
"""


def run(program: str, store: object) -> str:
    command = [sys.executable, "-c", BEGIN + program + END, str(store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_training_needs_no_compiler_and_comes_out_the_same(tmp_path):
    with_it = run("meet(); print(train(), file=sys.stdout); assert is_real()", tmp_path / "a")
    without = run("install_lazy_dynamo(); meet(); print(train()); assert not is_real()", tmp_path / "b")
    assert with_it == without


def test_torchvision_needs_no_compiler_and_gets_the_real_function_once_there_is_one(tmp_path):
    program = """
    from torchvision.ops import roi_align
    from torchvision.models import resnet18
    module = sys.modules["torchvision.ops.roi_align"]
    ours = module.is_compile_supported
    assert not is_real()
    assert ours("cpu") is True and is_real() and module.is_compile_supported is not ours
    assert module.is_compile_supported is torch._dynamo.utils.is_compile_supported
    import torch._dynamo.utils
    assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
    torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)(torch.ones(1))
    """.replace("\n    ", "\n")
    run("install_lazy_dynamo()\n" + program, tmp_path / "store")


def test_what_is_compiled_later_is_compiled_as_ever(tmp_path):
    """Graphs, breaks and results are those of a process that imported the compiler at once."""
    program = """
    meet()
    train()
    result = train(compiled=True)
    counters = torch._dynamo.utils.counters
    print(result, counters["stats"]["unique_graphs"], sorted(counters["graph_break"].values()))
    """.replace("\n    ", "\n")
    ever, later = (
        run(f"{first}; {program}", tmp_path / first) for first in ("import torch._dynamo", "install_lazy_dynamo()")
    )
    assert ever == later


NEEDS = [
    "from torch._dynamo.utils import counters; assert counters is torch._dynamo.utils.counters",
    "assert utils.counters is torch._dynamo.utils.counters",
    "assert disable(lambda: 2)() == 2",
]
"""Kinds of need: an import, what a module that was imported before has, a call of a function that was. The compiler
itself is in the tests above. Each imports all of it, which takes seconds; the long test has every form of them."""
MORE = [
    "import torch._dynamo.config as config; assert config is sys.modules['torch._dynamo.config']",
    "from torch._dynamo import config; assert config.optimize_ddp is True",
    "import torch._dynamo.utils as own; assert own.counters is torch._dynamo.utils.counters",
    "assert torch._dynamo.trace_rules.torch_name_rule_map",
    "torch.compiler.disable(lambda: 1)()",
    "torch.compiler.reset()",
    "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item() == 2",
]
CHECK = """
import os, types
from torch._dynamo import disable, graph_break, utils
first = sys.modules["torch._dynamo"]
meet(); train()
assert not is_real()
marked = torch.optim.Optimizer.add_param_group.__wrapped__
assert vars(marked)["__dynamo_disable"] is marked
for need in NEEDS:
    child = os.fork()
    if child == 0:
        exec(need)
        assert is_real() and "__dynamo_disable" not in vars(marked)
        import torch._dynamo, torch._dynamo.config
        assert torch._dynamo is first is sys.modules["torch._dynamo"]
        assert torch._dynamo.config.__spec__.origin.endswith("config.py")
        assert torch._dynamo.disable.__module__ == "torch._dynamo.decorators"
        assert torch._dynamo.graph_break.__module__ == "torch._dynamo.decorators"
        assert isinstance(torch._dynamo.utils, types.ModuleType) and type(first) is types.ModuleType
        graph_break()
        print(need, flush=True)
    os.waitpid(child, 0) if child else os._exit(0)
"""


@pytest.mark.parametrize("needs", [NEEDS, pytest.param(MORE, marks=pytest.mark.long)], ids=["kinds", "more"])
def test_it_is_the_real_one_as_soon_as_it_is_needed(tmp_path, needs):
    assert run(f"install_lazy_dynamo()\nNEEDS = {needs!r}\n" + CHECK, tmp_path / "store").splitlines() == needs


def test_a_module_that_is_missing_is_missing(tmp_path):
    program = """
    try:
        import torch._dynamo.no_such_module
    except ModuleNotFoundError as error:
        print(error.name)
    """.replace("\n    ", "\n")
    assert run("install_lazy_dynamo()\n" + program, tmp_path / "store") == "torch._dynamo.no_such_module"
