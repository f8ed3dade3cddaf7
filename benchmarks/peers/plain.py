"""torchrun and DistributedDataParallel by hand, after PyTorch's tutorials. Started again, it goes on after the last
epoch that it has saved.

torchrun --standalone --nproc-per-node 2 -m benchmarks.peers.plain DATA OUT --epochs 2 --batch 64
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.peers import work


def main() -> None:
    args = work.arguments()
    dist.init_process_group("gloo")
    train, held_out = work.data(args)
    sampler = DistributedSampler(train, drop_last=True)
    loader = DataLoader(train, sampler=sampler, drop_last=True, **work.loading(args))
    shared = DistributedSampler(held_out, shuffle=False)
    evaluation = DataLoader(held_out, sampler=shared, **work.loading(args, evaluation=True))
    torch.manual_seed(0)
    model = DistributedDataParallel(work.model(args))
    optimizer = work.optimizer(args, model)
    schedule = work.schedule(args, optimizer, args.epochs * len(loader))
    parts, first, last = {"model": model.module, "optimizer": optimizer, "schedule": schedule}, 0, args.out / "last.pt"
    if last.exists():
        saved = torch.load(last)
        first = saved["epoch"] + 1
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for epoch in range(first, args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        for step, (inputs, targets) in enumerate(loader, epoch * len(loader)):
            optimizer.zero_grad()
            with work.autocast(args):
                loss = work.loss(model(inputs), targets)
            loss.backward()
            if args.clip:
                nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            schedule.step()
            if step % 10 == 0 and dist.get_rank() == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.4f}", flush=True)
                work.tell(args, "step", step=step + 1)
        work.tell(args, "trained", epoch=epoch)
        model.eval()
        right = torch.zeros(2)
        with torch.no_grad(), work.autocast(args):
            for inputs, targets in evaluation:
                right += torch.tensor([(model(inputs).argmax(-1) == targets).sum(), targets.numel()])
        dist.all_reduce(right)
        work.tell(args, "evaluated", epoch=epoch, accuracy=float(right[0] / right[1]))
        if dist.get_rank() == 0:
            saved = {"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}
            torch.save(saved, args.out / "new.pt")
            os.replace(args.out / "new.pt", last)  # a crash leaves the old one or the new one
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
