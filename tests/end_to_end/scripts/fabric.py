"""A script for Lightning's Fabric, which torchrun started."""

import os

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset


def main():
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=int(os.environ["LOCAL_WORLD_SIZE"]))
    fabric.launch()
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    data = TensorDataset(torch.linspace(0, 1, 128).reshape(32, 4), torch.linspace(0, 1, 32)[:, None])
    for inputs, targets in fabric.setup_dataloaders(DataLoader(data, batch_size=4)):
        optimizer.zero_grad()
        fabric.backward(torch.nn.functional.mse_loss(model(inputs), targets))
        optimizer.step()
    if fabric.is_global_zero:
        print("weights", fabric.world_size, [round(value, 6) for value in model.module.weight.flatten().tolist()])


if __name__ == "__main__":
    main()
