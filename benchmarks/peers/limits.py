"""What no launcher can save: a job's bare computing and bare decoding, on as many processes at once as there are ranks.

`bare(job, data)` starts them; each runs this file with the arguments of a peer's script and prints its figures.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.peers import work
from benchmarks.peers.jobs import RANKS, Job, Settings, environment, script

STEPS, FILES = 60, 400


def bare(job: Job, data: Path, out: Path, settings: Settings) -> dict[str, float]:
    """Seconds of an epoch's forwards, backwards and optimizer steps, and of decoding a rank's share of the training's
    files once, 0 for texts. The slowest process counts.

    Raises:
        RuntimeError: when a process fails.
    """
    words = [sys.executable, *script("limits", job, data, out, settings)]
    own = [subprocess.Popen(words, env=environment("limits", job), stdout=subprocess.PIPE) for _ in range(RANKS)]
    told = [process.communicate()[0] for process in own]
    if any(process.returncode for process in own):
        raise RuntimeError(f"{' '.join(words)} failed")
    found = [json.loads(line) for line in told]
    step, decoding = (max(one[name] for one in found) for name in ("step", "decoding"))
    return {"epoch": step * job.total_steps(data) / job.epochs, "decoding": decoding}


def main() -> None:
    args = work.arguments()
    train, _ = work.data(args)
    print(json.dumps({"step": _step(args, train), "decoding": 0.0 if args.windows else _decoding(train)}))


def _step(args, train) -> float:
    """Of one batch that is there."""
    batch = train.__getitems__([*range(args.batch)]) if args.windows else None
    if batch is None:
        some = [train[place] for place in range(args.batch)]
        batch = torch.stack([image for image, _ in some]), torch.tensor([label for _, label in some])
    model = work.model(args)
    optimizer, took = work.optimizer(args, model), []
    for _ in range(STEPS):
        began = time.perf_counter()
        optimizer.zero_grad()
        with work.autocast(args):
            loss = work.loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _decoding(train) -> float:
    """From memory, with the decoder alone."""
    files = [path for path, _ in train.samples[:FILES]]
    encoded = [torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8) for path in files]
    began = time.perf_counter()
    for content in encoded:
        decode_jpeg(content, ImageReadMode.RGB, apply_exif_orientation=True)
    return (time.perf_counter() - began) / len(files) * len(train) / RANKS


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
