"""What a person writes after PyTorch's tutorials: `plain_ddp.py [START_METHOD_OF_LOADING_PROCESSES]`."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Squares(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.full((4,), index / 32), torch.tensor([index**2 / 1024])


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = Squares()
    more = {"num_workers": 1, "multiprocessing_context": sys.argv[1]} if len(sys.argv) > 1 else {}
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, seed=1), **more)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    if dist.get_rank() == 0:
        print("weights", [round(value, 6) for value in model.module.weight.flatten().tolist()])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
