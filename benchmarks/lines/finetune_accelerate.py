"""Fine-tuning with Accelerate: `accelerate launch --cpu --num_processes 2 PROGRAM IMAGES WEIGHTS OUT`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, models
from torchvision.transforms import v2

IMAGES, WEIGHTS, OUT = sys.argv[1:]
EPOCHS = 2


def main():
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    normal = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    moved = v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip(), *tensor, normal])
    still = v2.Compose([v2.Resize(64), v2.CenterCrop(64), *tensor, normal])
    train, val = datasets.ImageFolder(IMAGES, moved), datasets.ImageFolder(IMAGES, still)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = len(train) // 5
    train_loader = DataLoader(Subset(train, order[held_out:]), batch_size=8, shuffle=True, num_workers=1)
    val_loader = DataLoader(Subset(val, order[:held_out]), batch_size=8, num_workers=1)

    model = models.resnet18(num_classes=len(train.classes))
    weights = torch.load(WEIGHTS, weights_only=True)
    weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    model.load_state_dict(weights, strict=False)
    head = [p for name, p in model.named_parameters() if name.startswith("fc.")]
    body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    optimizer = torch.optim.AdamW([{"params": body}, {"params": head, "lr": 1e-3}], lr=1e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train_loader))
    model, optimizer, train_loader, val_loader, schedule = accelerator.prepare(
        model, optimizer, train_loader, val_loader, schedule
    )

    saved = sorted(Path(OUT).glob("epoch_*"), key=lambda path: int(path.name.partition("_")[2]))
    start = 0
    if saved:
        accelerator.load_state(str(saved[-1]))
        start = int(saved[-1].name.partition("_")[2]) + 1
    for epoch in range(start, EPOCHS):
        model.train()
        train_loader.set_epoch(epoch)
        total = torch.zeros((), device=accelerator.device)
        for images, labels in train_loader:
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.detach()
        model.eval()
        right, count, val_loss = 0, 0, 0.0
        for images, labels in val_loader:
            with torch.no_grad():
                scores = model(images)
            scores, labels = accelerator.gather_for_metrics((scores, labels))
            right += (scores.argmax(1) == labels).sum().item()
            val_loss += F.cross_entropy(scores, labels, reduction="sum").item()
            count += len(labels)
        train_loss = accelerator.reduce(total, "mean").item() / len(train_loader)
        figures = {"epoch": epoch, "loss": train_loss, "val_loss": val_loss / count, "accuracy": right / count}
        accelerator.print(figures)
        accelerator.save_state(f"{OUT}/epoch_{epoch}")
        if accelerator.is_main_process:
            with open(f"{OUT}/metrics.jsonl", "a") as log:
                log.write(json.dumps(figures) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    main()
