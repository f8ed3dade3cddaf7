"""A student that learns from a teacher: `dist-train run --nproc-per-node 2 examples/distillation.py [STEPS [FOLDER]]`,
or torchrun, or python alone: the same bits each time.
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from dist_train import exact

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
FOLDER = sys.argv[2] if len(sys.argv) > 2 else "out"
BATCH, CLASSES, TEMPERATURE = 40, 4, 2.0


class Blobs(torch.utils.data.Dataset):
    """Points of several clouds, float32 [8], each with the number of its cloud."""

    def __init__(self, size, seed):
        draws = torch.Generator().manual_seed(seed)
        self.targets = torch.randint(CLASSES, (size,), generator=draws)
        self.points = torch.randn(size, 8, generator=draws) + 2 * F.one_hot(self.targets, 8)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.points[index], self.targets[index]


def net(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, CLASSES)).to(exact.device())


exact.seed(0)
teacher = net(64).eval().requires_grad_(False)  # as it is: nothing of it is trained
student = exact.DistributedDataParallel(net(16), microbatches=8)
optimizer = torch.optim.SGD(student.parameters(), lr=0.2, momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
best = {"loss": float("inf"), "step": 0}
state = {"student": student, "optimizer": optimizer, "schedule": schedule, "best": best}
start = exact.resume(FOLDER, **state)

for step in exact.loader(Blobs(400, seed=0), global_batch=BATCH, workers=1, steps=STEPS, start=start):
    for microbatch in student.each(step):
        output = student(microbatch.inputs)
        soft = F.softmax(teacher(microbatch.inputs) / TEMPERATURE, dim=1)
        distance = F.kl_div(F.log_softmax(output / TEMPERATURE, dim=1), soft, reduction="sum") * TEMPERATURE**2
        loss = F.cross_entropy(output, microbatch.targets, reduction="sum") + distance
        (loss / BATCH).backward()
    exact.clip(student, 1.0)
    optimizer.step()
    schedule.step()
    done = step[0].step + 1
    if done % 10 == 0:
        student.eval()
        found = {}
        with torch.no_grad():
            for batch in exact.evaluation_loader(Blobs(150, seed=1), batch_size=32):
                output = student(batch.inputs)
                right = (output.argmax(1) == batch.targets).sum()
                loss = F.cross_entropy(output, batch.targets, reduction="sum")
                found[batch.number] = {"loss": loss, "right": right, "count": len(batch.targets)}
        student.train()
        total = exact.sum(found)
        loss = float(total["loss"] / total["count"])
        if loss < best["loss"]:
            best.update(loss=loss, step=done)
        if exact.is_first():
            print(f"step {done}: loss {loss:.6f} accuracy {total['right'] / total['count']:.3f}")
        exact.save(FOLDER, step=done, **state)
if exact.is_first():
    print(exact.fingerprint(**state))
