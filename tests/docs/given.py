"""What the console blocks of a page find in their folder, besides `configs/` and `examples/`; and what is not run."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DIGITS = "dist-train train configs/digits.yaml"
EVERY_CHECKPOINT = f"{DIGITS} checkpoint.keep=20"
PHOTOS = "python -m tests.docs.photos photos"
BIRDS = """python -m tests.docs.photos birds
mkdir photos; cp birds/heron/000.jpg photos/1.jpg; cp birds/stork/000.jpg photos/2.jpg
dist-train train configs/image_folder.yaml data.root=birds name=birds model=cnn data.image_size=32 data.resize=32 \
augment=[] batch.global_size=16 'train.duration=2 epochs' 'schedule.warmup=0 steps'"""

GIVEN = {
    "README.md": PHOTOS,
    "docs/checkpoints.md": DIGITS,
    "docs/data.md": PHOTOS,
    "docs/own-loop.md": "cp examples/own_loop.py train.py",
    "docs/predict.md": BIRDS,
    "docs/replay.md": EVERY_CHECKPOINT,
    "docs/report.md": DIGITS,
    "docs/tutorials/language-model.md": "cp -r $PYTHONPATH/README.md $PYTHONPATH/docs .",
    "docs/tutorials/your-images.md": PHOTOS,
}
"""By page, a script of bash: what a reader of that page has already."""

NOT_RUN = {
    ("README.md", "make train"): "installs packages from a network, and runs this very suite",
    ("README.md", "pip install"): "installs a wheel, as tests/end_to_end/test_package.py does",
    ("docs/gpu.md", "benchmarks/gpu_correct.sh"): "needs a GPU",
    ("docs/gpu.md", "benchmarks/gpu_speed.sh"): "needs a GPU",
    ("docs/launching.md", "dist-train run --nproc-per-node 4 train.py"): "needs GPUs and a second node",
    ("docs/slurm.md", "dist-train slurm configs/imagenet"): "needs a cluster with 32 GPUs",
    ("docs/slurm.md", "dist-train runs"): "shows a job that SLURM has requeued",
    ("docs/scale.md", "python -m benchmarks.scale"): "measures for minutes and needs the machine for itself",
}
"""Page and beginning of the first command of each block that no test runs, and why. At most eight."""


def prepare(folder: Path) -> dict[str, str]:
    """Puts into `folder` what every page finds there; the environment of its terminal."""
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    home = folder.with_name(f"{folder.name}-home")
    home.mkdir()
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": tools, "PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    own |= {"TERM": "xterm-256color", "BROWSER": "true", "LC_ALL": "C.UTF-8", "GLOO_SOCKET_IFNAME": "lo"}
    return {**{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "CI", "NO_COLOR")}, **own}
