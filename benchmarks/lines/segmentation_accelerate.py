"""Segmentation with Accelerate: `accelerate launch --cpu --num_processes 2 segmentation_accelerate.py OUT`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from torch.utils.data import DataLoader

from examples.shapes import Shapes, SmallUNet

(OUT,) = sys.argv[1:]
EPOCHS = 2


def main():
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    train, val = Shapes("train", size=160), Shapes("evaluation", eval_size=30)
    classes = len(train.classes)
    train_loader = DataLoader(train, batch_size=16, shuffle=True, num_workers=1)
    val_loader = DataLoader(val, batch_size=16, num_workers=1)
    model = SmallUNet(classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
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
        for images, masks in train_loader:
            loss = F.cross_entropy(model(images / 255), masks, ignore_index=255)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.detach()
        model.eval()
        confusion, val_loss = torch.zeros(classes, classes, dtype=torch.int64), 0.0
        for images, masks in val_loader:
            with torch.no_grad():
                scores = model(images / 255)
            scores, masks = accelerator.gather_for_metrics((scores, masks))
            val_loss += F.cross_entropy(scores, masks, ignore_index=255, reduction="sum").item()
            valid = masks != 255
            pairs = classes * masks[valid] + scores.argmax(1)[valid]
            confusion += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        hits = confusion.diag()
        iou = (hits / (confusion.sum(0) + confusion.sum(1) - hits)).nanmean().item()
        count = confusion.sum().item()
        train_loss = accelerator.reduce(total, "mean").item() / len(train_loader)
        figures = {"epoch": epoch, "loss": train_loss, "val_loss": val_loss / count, "iou": iou}
        figures["pixel_accuracy"] = hits.sum().item() / count
        accelerator.print(figures)
        accelerator.save_state(f"{OUT}/epoch_{epoch}")
        if accelerator.is_main_process:
            with open(f"{OUT}/metrics.jsonl", "a") as log:
                log.write(json.dumps(figures) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    main()
