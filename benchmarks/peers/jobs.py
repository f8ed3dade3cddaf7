"""The jobs, as data, and the command that does one of them with dist-train or a peer."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import surroundings
from benchmarks.models import VOCABULARY

OURS, RANKS = "dist-train", 2
SCRIPTS = {"plain": "plain", "accelerate": "with_accelerate", "lightning": "with_lightning"}
IMAGES, TEXT = Path(__file__).with_name("ours.yaml"), Path(__file__).parents[1] / "step_overhead_gpt.yaml"
SIDE = 112
"""Pixels of the shorter side at which photos are kept: 1.75 times a crop's, as FFCV's ImageNet has it (400 for 224)."""
EVALUATED = 64
"""Samples of one forward pass of an evaluation, on all sides."""
RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a side may choose for itself.

    Attributes:
        workers: loading processes of a rank; dist-train has none.
        precision: `fp32` or `bf16`, which is torch's autocast with weights in fp32, on all sides.
        channels_last: the memory format of images and convolutions.
    """

    workers: int = 0
    precision: str = "fp32"
    channels_last: bool = True

    def __str__(self) -> str:
        return f"{self.workers} loading, {self.precision}{', channels last' * self.channels_last}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all sides do.

    Attributes:
        batch: samples of a rank in each step.
        epochs: with an evaluation and a checkpoint after each.
        photos: pixels of a random resized crop; 0: files of 32 pixels, a random crop.
        steps: of a language model, in its one epoch; 0: images.
        killed: share of the training after which rank 1 gets SIGKILL, once; 0: never.
        aims: the most that ours may take of the best peer's figure.
    """

    batch: int
    epochs: int
    photos: int = 0
    steps: int = 0
    killed: float = 0.0
    aims: Mapping[str, float]

    def total_steps(self, data: Path) -> int:
        if self.steps:
            return self.steps
        return self.epochs * (sum(1 for _ in (data / "train").glob("*/*")) // (RANKS * self.batch))


JOBS = {
    "images": Job(batch=64, epochs=2, aims={"whole": 0.5}),
    "photos": Job(batch=32, epochs=3, photos=64, aims={"whole": 0.7, "epoch": 0.4}),
    "text": Job(batch=6, epochs=1, steps=1000, aims={"whole": 0.8, "step": 1.02}),
    "kill": Job(batch=64, epochs=4, killed=0.625, aims={"whole": 0.5}),  # in the middle of the third epoch
}


def command(side: str, job: Job, data: Path, out: Path, settings: Settings) -> list[str]:
    """From a folder `out`, empty unless the command is given again to go on."""
    restarts = ["--max-restarts", str(RESTARTS)] if job.killed else []
    if side == OURS:
        launch = [sys.executable, "-m", "dist_train.launch", "train", str(TEXT if job.steps else IMAGES), *restarts]
        launch += ["--nproc-per-node", str(RANKS), "--run-dir", str(out / "run")]
        return [*launch, *_overrides(job, data, out, settings)]
    module = script(SCRIPTS[side], job, data, out, settings)
    if side == "lightning":  # which starts its ranks, and not again
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), *restarts]
    return [sys.executable, *torchrun, *module]


def script(name: str, job: Job, data: Path, out: Path, settings: Settings) -> list[str]:
    """One of the scripts of this folder, with the arguments that all have."""
    module = ["-m", f"benchmarks.peers.{name}", str(data), str(out), "--epochs", str(job.epochs)]
    module += ["--batch", str(job.batch), "--photos", str(job.photos), "--workers", str(settings.workers)]
    module += ["--precision", settings.precision, *["--contiguous"] * (not settings.channels_last)]
    return [*module, "--windows", str(job.steps * job.batch * RANKS)]


def environment(side: str, job: Job) -> dict[str, str]:
    """What a command finds. Ranks that torchrun starts again would else find the addresses of dead ones in its store
    (pytorch/pytorch#135712)."""
    alike = surroundings.environment(PYTHONPATH=str(Path(__file__).parents[2]))
    return alike | ({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if job.killed and side != OURS else {})


def _overrides(job: Job, data: Path, out: Path, settings: Settings) -> list[str]:
    duration = f"{job.steps} steps" if job.steps else f"{job.epochs} epochs"
    same = [f"data.root={data}", f"train.duration={duration}", f"batch.global_size={RANKS * job.batch}"]
    same += [f"eval.batch_size={EVALUATED}", f"train.precision={settings.precision}"]
    if job.steps:
        return same
    same += [f"model.channels_last={str(settings.channels_last).lower()}"]
    if not job.photos:
        return [*same, f"data.cache={{folder: {out / 'cache'}}}"]
    normalized = "{name: normalize, mean: [0.49, 0.48, 0.45], std: [0.25, 0.24, 0.26]}"
    augment = f"augment=[{{name: random_resized_crop}}, {{name: horizontal_flip}}, {normalized}]"
    cache = f"data.cache={{side: {SIDE}, folder: {out / 'cache'}}}"
    return [*same, f"data.image_size={job.photos}", cache, augment]


def write_tokens(text: Path, folder: Path) -> Path:
    """`folder` with a text as nanoGPT's prepare.py for characters writes it: the last tenth is for evaluation.

    Raises:
        SystemExit: when the text is not the one whose size the models have.
    """
    characters = text.read_text()
    numbers = {character: number for number, character in enumerate(sorted(set(characters)))}
    if len(numbers) != VOCABULARY:
        sys.exit(f"{text} has {len(numbers)} different characters; tinyshakespeare, which is needed, has {VOCABULARY}")
    tokens = np.array([numbers[character] for character in characters], dtype=np.uint16)
    border = int(0.9 * len(tokens))
    tokens[:border].tofile(folder / "train.bin")
    tokens[border:].tofile(folder / "val.bin")
    return folder
