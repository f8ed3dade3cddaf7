"""Hugging Face Accelerate, after its examples.

torchrun --standalone --nproc-per-node 2 -m benchmarks.peers.with_accelerate DATA OUT --epochs 2 --batch 64

(accelerate launch knows several processes on a CPU under MPI alone.)
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers import work


def main() -> None:
    args = work.arguments()
    accelerator = Accelerator(cpu=True)
    train, held_out = work.images(args)
    loading = {"batch_size": args.batch, "num_workers": args.workers, "persistent_workers": args.workers > 0}
    torch.manual_seed(0)
    model = work.model(args)
    criterion = nn.CrossEntropyLoss()
    model, optimizer, loader, evaluation = accelerator.prepare(
        model,
        work.optimizer(model),
        DataLoader(train, shuffle=True, drop_last=True, **loading),
        DataLoader(held_out, **loading),
    )
    for epoch in range(args.epochs):
        model.train()
        for step, (inputs, targets) in enumerate(loader):
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            if step % 10 == 0:
                accelerator.print(f"epoch {epoch} step {step} loss {loss.item():.4f}", flush=True)
        work.tell(args, "trained", epoch=epoch)
        model.eval()
        right, seen = 0, 0
        with torch.no_grad():
            for inputs, targets in evaluation:
                found, given = accelerator.gather_for_metrics((model(inputs).argmax(1), targets))
                right, seen = right + int((found == given).sum()), seen + len(given)
        work.tell(args, "evaluated", epoch=epoch, accuracy=right / seen)
        accelerator.save_state(str(args.out / "last"))
    accelerator.end_training()


if __name__ == "__main__":
    main()
