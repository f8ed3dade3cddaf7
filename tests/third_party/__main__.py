"""`python -m tests.third_party [--python PYTHON] [NAME …]`: programs written for torchrun, under it and under us.

Each runs on two ranks under torchrun, `dist-train run` and `dist-train run --start exec`; exit code and what rank 0
prints of the weights must be the same. PYTHON is an interpreter that has the libraries; one that it lacks is skipped.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).with_name("program.py"))
WAYS = {
    "torchrun": ("torch.distributed.run", "--standalone"),
    "preload": ("launch", "run", "--run-dir", "run", "--start", "preload"),
    "exec": ("launch", "run", "--run-dir", "run", "--start", "exec"),
}
SCRIPTS = "accelerate.test_utils.scripts"
PROGRAMS: dict[str, tuple[str | None, list[str]]] = {
    "imagenet": (None, [PROGRAM, "imagenet"]),
    "nanogpt": (None, [PROGRAM, "nanogpt"]),
    "elastic_record": (None, [PROGRAM, "elastic_record"]),
    "fsdp2": (None, [PROGRAM, "fsdp2"]),
    "tensor_parallel": (None, [PROGRAM, "tensor_parallel"]),
    "rpc": (None, [PROGRAM, "rpc"]),
    "timm": ("timm", [PROGRAM, "timm"]),
    "accelerate": ("accelerate", [PROGRAM, "accelerate"]),
    "lightning": ("lightning", [PROGRAM, "lightning"]),
    "fabric": ("lightning", [PROGRAM, "fabric"]),
    "transformers": ("transformers", [PROGRAM, "transformers"]),
    "deepspeed": ("deepspeed", [PROGRAM, "deepspeed"]),
    "accelerate test_script": ("accelerate", ["-m", f"{SCRIPTS}.test_script"]),
    "accelerate test_sync": ("accelerate", ["-m", f"{SCRIPTS}.test_sync"]),
    "accelerate test_ops": ("accelerate", ["-m", f"{SCRIPTS}.test_ops"]),
}
"""The library that each needs besides torch, and its words. (Of Accelerate's own tests test_distributed_data_loop hangs
under torchrun itself, in DDP's Join over gloo.)"""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.third_party", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args(argv)
    different = 0
    for name in arguments.names or PROGRAMS:
        needs, words = PROGRAMS[name]
        if needs is not None and not has(arguments.python, needs):
            print(f"{name:40} skipped: {arguments.python} has no {needs}")
            continue
        found = {way: run(arguments.python, launcher, words) for way, launcher in WAYS.items()}
        same = len({result[:2] for result in found.values()}) == 1
        different += not same
        times = ", ".join(f"{way} {seconds:.1f} s" for way, (_, _, seconds) in found.items())
        code, weights, _ = found["torchrun"]
        print(
            f"{name:40} exit code {code}, {weights[-16:] or 'no weights'}: {'same' if same else found} ({times})",
            flush=True,
        )
    return 1 if different else 0


def has(python: str, module: str) -> bool:
    looks = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", looks]).returncode == 0


def run(python: str, launcher: Sequence[str], words: Sequence[str]) -> tuple[int, str, float]:
    """The exit code, what rank 0 has said of the weights, and the seconds that it took."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "1"}
    command = [python, "-m", *launcher, "--nproc-per-node", "2", *words]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=900
        )
    said = [line for line in done.stdout.splitlines() if line.startswith("weights ")]
    if done.returncode:
        print(done.stdout[-1500:], done.stderr[-1500:])
    return done.returncode, said[-1] if said else "", time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
