"""torchrun and DistributedDataParallel by hand, after PyTorch's tutorials.

torchrun --standalone --nproc-per-node 2 -m benchmarks.peers.plain DATA OUT --epochs 2 --batch 64
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.peers import work


def main() -> None:
    args = work.arguments()
    dist.init_process_group("gloo")
    train, held_out = work.images(args)
    sampler = DistributedSampler(train, drop_last=True)
    loading = {"batch_size": args.batch, "num_workers": args.workers, "persistent_workers": args.workers > 0}
    loader = DataLoader(train, sampler=sampler, drop_last=True, **loading)
    evaluation = DataLoader(held_out, sampler=DistributedSampler(held_out, shuffle=False), **loading)
    torch.manual_seed(0)
    model = DistributedDataParallel(work.model(args))
    optimizer, criterion = work.optimizer(model), nn.CrossEntropyLoss()
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        for step, (inputs, targets) in enumerate(loader):
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            if step % 10 == 0 and dist.get_rank() == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.4f}", flush=True)
        work.tell(args, "trained", epoch=epoch)
        model.eval()
        right = torch.zeros(2)
        with torch.no_grad():
            for inputs, targets in evaluation:
                right += torch.tensor([(model(inputs).argmax(1) == targets).sum(), len(targets)])
        dist.all_reduce(right)
        work.tell(args, "evaluated", epoch=epoch, accuracy=float(right[0] / right[1]))
        if dist.get_rank() == 0:
            torch.save([model.module.state_dict(), optimizer.state_dict()], args.out / "last.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
