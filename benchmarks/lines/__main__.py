"""How many lines does a user write? `python -m benchmarks.lines [--run PYTHON] [NAME …]`.

Counts the lines of code of each program in this folder: no blank lines, comments or docstrings. A config is counted
with one key a line. What all three of a task share, a data set and networks, is imported and not counted. `--run` also
starts each one on two processes over gloo, to the end, and again, so that it goes on from its checkpoint; PYTHON is an
interpreter that has torch, lightning, accelerate, torchmetrics, transformers and what dist-train needs.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from benchmarks.surroundings import environment

FOLDER, ROOT = Path(__file__).parent, Path(__file__).parents[2]
TASKS = {"finetune": ("IMAGES", "WEIGHTS"), "lm": ("TEXT",), "segmentation": (), "gan": ()}
"""Each with the arguments that its programs take before OUT."""
SIDES = ("ours", "lightning", "accelerate")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def path(task: str, side: str) -> Path:
    return next(FOLDER.glob(f"{task}_{side}.*"))


def count(path: Path) -> int:
    """Lines on which there is code."""
    text = path.read_text()
    if path.suffix == ".yaml":
        return len(yaml.safe_dump(yaml.safe_load(text)).splitlines())
    lines: set[int] = set()
    begins = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _NO_CODE:
            begins = begins or token.type == tokenize.NEWLINE
            continue
        if not (token.type == tokenize.STRING and begins):  # text that is a statement by itself
            lines.update(range(token.start[0], token.end[0] + 1))
        begins = False
    return len(lines)


def command(task: str, side: str, inputs: dict[str, str], out: str) -> list[str]:
    """What follows the interpreter."""
    given, program = [inputs[name] for name in TASKS[task]], str(path(task, side))
    if side == "lightning":
        return [program, *given, out]
    if side == "accelerate":
        return [*TORCHRUN, program, *given, out]
    two = ["--nproc-per-node", "2"]
    if path(task, side).suffix == ".py":
        return ["-m", "launch", "run", *two, "--log-dir", f"{out}-logs", program, out]
    keys = {"IMAGES": "data.root", "TEXT": "data.root", "WEIGHTS": "model.start_weights"}
    return ["-m", "launch", "train", program, *(f"{keys[n]}={inputs[n]}" for n in TASKS[task]), *two, "--run-dir", out]


def run(python: str, task: str, side: str, folder: Path) -> str:
    """What came of two starts, the second of which finds the first one's checkpoint."""
    own = environment(PYTHONPATH=str(ROOT), ACCELERATE_USE_CPU="1", MASTER_ADDR="127.0.0.1", PYTHONWARNINGS="ignore")
    out = folder / f"{task}-{side}"
    out.mkdir()
    ends = []
    for _ in range(2):
        words = [python, *command(task, side, _inputs(folder), str(out))]
        done = subprocess.run(words, cwd=ROOT, env=own, capture_output=True, text=True)
        ends.append(done.returncode)
        if done.returncode:
            print(done.stdout[-1500:], done.stderr[-1500:], file=sys.stderr)
    return f"ends with {ends[0]}, again with {ends[1]}"


def _inputs(folder: Path) -> dict[str, str]:
    """Images in a folder for each of three classes, weights of a ResNet-18 for ten, and a text; made once."""
    found = {name: folder / name.lower() for name in ("IMAGES", "WEIGHTS", "TEXT")}
    if not found["IMAGES"].exists():
        import torch
        from PIL import Image
        from torchvision.models import resnet18

        draws = np.random.default_rng(0)
        for number, name in enumerate(("heron", "stork", "crane")):
            (found["IMAGES"] / name).mkdir(parents=True)
            for index in range(20):
                pixels = draws.integers(0, 90, (80, 80, 3)) + 60 * np.eye(3, dtype=np.int64)[number]
                Image.fromarray(pixels.astype(np.uint8)).save(found["IMAGES"] / name / f"{index}.png")
        torch.save(resnet18(num_classes=10).state_dict(), found["WEIGHTS"])
        found["TEXT"].write_text((ROOT / "README.md").read_text())
    return {name: str(path) for name, path in found.items()}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lines", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="gan, lm_ours, …")
    parser.add_argument("--run", metavar="PYTHON", help="starts each of them as well")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            for side in SIDES:
                name = path(task, side).stem
                if args.names and not {task, name} & set(args.names):
                    continue
                said = run(args.run, task, side, Path(folder)) if args.run else ""
                print(f"{name:25} {count(path(task, side)):4} {said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
