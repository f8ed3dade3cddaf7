"""`program.py NAME`: small trainings as people write them with the libraries of others; rank 0 prints the weights."""

import argparse
import hashlib
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

warnings.filterwarnings("ignore")


def tell(parameters):
    """One line that is the same only for the same bits."""
    if int(os.environ["RANK"]) == 0:
        found = hashlib.sha256(b"".join(value.detach().cpu().numpy().tobytes() for value in parameters))
        print("weights", os.environ["WORLD_SIZE"], found.hexdigest(), flush=True)


def points():
    return TensorDataset(torch.linspace(0, 1, 256).reshape(64, 4), torch.linspace(0, 1, 64)[:, None])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 1))


def imagenet():
    """As torch's own example: DistributedDataParallel, a sampler that is told of the epoch, loading processes."""
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = points()
    sampler = DistributedSampler(data)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for inputs, targets in DataLoader(data, batch_size=4, sampler=sampler, num_workers=2):
            optimizer.zero_grad()
            mse_loss(model(inputs), targets).backward()
            optimizer.step()
    tell(model.parameters())
    dist.destroy_process_group()


def nanogpt():
    """As nanoGPT: no sampler, batches drawn by seed and rank, accumulation under require_backward_grad_sync."""
    dist.init_process_group("gloo")
    torch.manual_seed(1337 + int(os.environ["RANK"]))
    text = torch.randint(0, 65, (4096,), generator=torch.Generator().manual_seed(1))
    inner = nn.Sequential(nn.Embedding(65, 32), nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True))
    model = nn.parallel.DistributedDataParallel(nn.Sequential(inner, nn.Linear(32, 65)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        for part in range(2):
            at = torch.randint(0, len(text) - 17, (4,)).tolist()
            inputs, targets = (torch.stack([text[i + shift : i + shift + 16] for i in at]) for shift in (0, 1))
            model.require_backward_grad_sync = part == 1
            (cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    tell(model.parameters())
    dist.destroy_process_group()


def timm():
    """As timm's train.py: its own set-up of the ranks, model, optimizer, loss and average of the weights."""
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3, init_distributed_device

    init_distributed_device(argparse.Namespace(device="cpu", dist_backend="gloo", dist_url=None))
    torch.manual_seed(int(os.environ["RANK"]))
    model = timm.create_model("resnet10t", num_classes=4)
    average = ModelEmaV3(model, decay=0.9)
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=0.01)
    for _ in range(3):
        loss = LabelSmoothingCrossEntropy()(model(torch.randn(4, 3, 64, 64)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model.module)
    tell([*model.parameters(), *average.parameters()])


def accelerate():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(points(), batch_size=4))
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(mse_loss(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
    tell(accelerator.unwrap_model(model).parameters())
    accelerator.end_training()


def lightning():
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    L.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    trainer = L.Trainer(
        accelerator="cpu", strategy="ddp", devices=ranks, max_epochs=2, enable_model_summary=False, **quiet
    )
    module = Module()
    trainer.fit(module, DataLoader(points(), batch_size=4, shuffle=True))
    tell(module.parameters())


def fabric():
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=int(os.environ["LOCAL_WORLD_SIZE"]))
    fabric.launch()
    model = net()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for inputs, targets in fabric.setup_dataloaders(DataLoader(points(), batch_size=4)):
        optimizer.zero_grad()
        fabric.backward(mse_loss(model(inputs), targets))
        optimizer.step()
    tell(model.parameters())


def transformers():
    """The Trainer, on a model that is built from its config: nothing is downloaded."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    class Tokens(Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            tokens = torch.arange(index, index + 16) % 50
            return {"input_ids": tokens, "labels": tokens}

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    arguments = TrainingArguments(
        output_dir="out",
        max_steps=6,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_strategy="steps",
        save_steps=3,
        disable_tqdm=True,
        ddp_backend="gloo",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Tokens())
    trainer.train()
    tell(model.parameters())


def fsdp2():
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model = net()
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for inputs, targets in DataLoader(points(), batch_size=8):
        mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    tell([value.full_tensor() for value in model.parameters()])
    dist.destroy_process_group()


def tensor_parallel():
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    dist.init_process_group("gloo")
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(net(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    for inputs, targets in DataLoader(points(), batch_size=8):
        mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = [value.full_tensor() if hasattr(value, "full_tensor") else value for value in model.parameters()]
    tell(found)
    dist.destroy_process_group()


def deepspeed():
    """ZeRO, stage 1."""
    import deepspeed

    deepspeed.init_distributed("gloo")
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
        "zero_optimization": {"stage": 1},
    }
    model, _, loader, _ = deepspeed.initialize(model=net(), training_data=points(), config=config)
    for inputs, targets in loader:
        model.backward(mse_loss(model(inputs), targets))
        model.step()
    tell(model.module.parameters())


def rpc():
    """torch.distributed.rpc: rank 0 asks the others."""
    from torch.distributed import rpc as calls

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    calls.init_rpc(f"worker{rank}", rank=rank, world_size=ranks)
    if rank == 0:
        tell([calls.rpc_sync(f"worker{other}", torch.add, (torch.ones(4), other)) for other in range(ranks)])
    calls.shutdown()


def elastic_record():
    """An entry point as torch's documents have it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    record(imagenet)()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
