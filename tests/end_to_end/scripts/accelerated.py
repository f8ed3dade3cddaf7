"""A script for Accelerate."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset


def main():
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.linspace(0, 1, 128).reshape(32, 4), torch.linspace(0, 1, 32)[:, None])
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4))
    for inputs, targets in loader:
        optimizer.zero_grad()
        accelerator.backward(torch.nn.functional.mse_loss(model(inputs), targets))
        optimizer.step()
    weights = accelerator.unwrap_model(model).weight.flatten().tolist()
    accelerator.print("weights", accelerator.num_processes, [round(value, 6) for value in weights])
    accelerator.end_training()


if __name__ == "__main__":
    main()
