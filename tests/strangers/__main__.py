"""`python -m tests.strangers [--count N] [--seed S] [--only K] [--real]`: N forged runs, each given to every command.

None may run code of the stranger's, print a traceback, hang, end with a code that is not documented, or change a file
outside of the run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.strangers import commands, forge

CONFIG = """
data: {name: synthetic, shape: [3, 8, 8], classes: 3, size: 32, eval_size: 16}
model: {name: cnn, width: 2}
optimizer: {name: sgd, lr: 0.1}
batch: {microbatches: 2, global_size: 8}
train: {duration: 4 steps}
eval: {every: 2 steps, batch_size: 8}
checkpoint: {every: 2 steps}
loader: {workers: 0}
tracking: {wandb: {mode: disabled}}
"""
CODE_OF_A_STRANGER = """
import os
open(os.environ["DIST_TRAIN_CANARY"], "w").close()
def Thing(*_, **__): ...
thing = Thing
"""
PATIENCE = 150.0
"""Seconds after which a command counts as hung. It may watch a lease for 60 that it cannot read, and says so."""


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    counted: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strangers-") as temporary:
        folder = Path(temporary)
        os.environ["XDG_CONFIG_HOME"] = str(folder / "home")
        os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES="")
        commands.preload()
        make_run(folder / "base")
        os.environ[forge.CANARY] = str(folder / "canary")
        numbers = (
            range(arguments.first, arguments.first + arguments.count) if arguments.only is None else [arguments.only]
        )
        for number in numbers:
            counted += try_all(folder, number, arguments)
    found = sum(counted.values()) - counted["commands"]
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counted.items()))
    took = f"{time.monotonic() - began:.0f} s"
    print(f"{len(numbers)} forged runs, seed {arguments.seed}, {took}: {kinds}; {found} problems")
    return 1 if found else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.strangers", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="forged runs")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="K", help="the forged run of this number")
    parser.add_argument("--real", action="store_true", help="start the programs, which takes seconds each")
    parser.add_argument("--command", help="this one alone, such as 'evaluate a checkpoint'")
    parser.add_argument("--verbose", action="store_true", help="what each of them says")
    return parser.parse_args(argv)


def make_run(folder: Path) -> None:
    """A real one of four steps."""
    folder.mkdir()
    (folder / "c.yaml").write_text(CONFIG)
    command = [
        sys.executable,
        "-m",
        "dist_train.launch",
        "train",
        "c.yaml",
        "--nproc-per-node",
        "1",
        "--run-dir",
        "run",
    ]
    path = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=300
    )
    assert done.returncode == 0, done.stderr


def try_all(folder: Path, number: int, arguments: argparse.Namespace) -> Counter[str]:
    """One forged run, given to every command."""
    place, canary = folder / "place", folder / "canary"
    os.environ[forge.CANARY] = str(canary)
    counted: Counter[str] = Counter()
    shutil.copytree(folder / "base", place, symlinks=True)
    furnish(place)
    before = (place / "victim" / "file").read_text()
    what = forge.forge(place / "run", number, arguments.seed)
    with_checkpoint(place)
    runner = commands.run_real if arguments.real else commands.run
    for name, words in commands.COMMANDS.items():
        if arguments.command in (None, name):
            counted["commands"] += 1
            ended = runner(words, place, canary, PATIENCE)
            problems = ended.problems(canary)
            if (place / "victim" / "file").read_text() != before or len(list((place / "victim").iterdir())) != 1:
                problems.append("a file outside of the run was changed")
            if problems or arguments.verbose:
                told = "\n    ".join(ended.output.strip().splitlines()[-6:])
                print(f"{number} ({what}), {name}: {'; '.join(problems) or ended.code}\n    {told}", flush=True)
            counted.update(problems)
            if canary.is_dir():
                canary.rmdir()
            canary.unlink(missing_ok=True)
    shutil.rmtree(place)
    return counted


def furnish(place: Path) -> None:
    """What lies around the run: a picture, the stranger's code, and a file of the user's."""
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 30, 30)).save(place / "image.png")
    for name in ("canary.py", "hubconf.py"):
        (place / name).write_text(CODE_OF_A_STRANGER)
    (place / "evil.sh").write_text('touch "$DIST_TRAIN_CANARY"\n')
    for name in ("evil.pt", "evil.npy"):
        (place / name).write_bytes(forge.pickle.dumps(forge.Pickled()))
    (place / "victim").mkdir()
    (place / "victim" / "file").write_text("mine\n")


def with_checkpoint(place: Path) -> None:
    """The newest checkpoint of the run, copied out under another name; an empty folder where there is none."""
    found = sorted((place / "run" / "checkpoints").glob("step-[0-9]*[0-9]")) if (place / "run").is_dir() else []
    if found and found[-1].is_dir():
        subprocess.run(["cp", "-a", str(found[-1]), str(place / "checkpoint")], check=True)
    else:
        (place / "checkpoint").mkdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
