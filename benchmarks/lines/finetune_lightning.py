"""Fine-tuning with Lightning: `python finetune_lightning.py IMAGES WEIGHTS OUT`. It starts a second process."""

import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets, models
from torchvision.transforms import v2

IMAGES, WEIGHTS, OUT = sys.argv[1:]


class FineTuned(L.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.model = models.resnet18(num_classes=classes)
        weights = torch.load(WEIGHTS, weights_only=True)
        weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
        self.model.load_state_dict(weights, strict=False)
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch, _):
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        images, labels = batch
        scores = self.model(images)
        self.accuracy(scores, labels)
        self.log("val_loss", F.cross_entropy(scores, labels), sync_dist=True)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self):
        head = [p for name, p in self.model.named_parameters() if name.startswith("fc.")]
        body = [p for name, p in self.model.named_parameters() if not name.startswith("fc.")]
        groups = [{"params": body}, {"params": head, "lr": 1e-3}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.01)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    L.seed_everything(0, workers=True)
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    normal = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    moved = v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip(), *tensor, normal])
    still = v2.Compose([v2.Resize(64), v2.CenterCrop(64), *tensor, normal])
    train, val = datasets.ImageFolder(IMAGES, moved), datasets.ImageFolder(IMAGES, still)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = len(train) // 5
    train_loader = DataLoader(Subset(train, order[held_out:]), batch_size=8, shuffle=True, num_workers=1)
    val_loader = DataLoader(Subset(val, order[:held_out]), batch_size=8, num_workers=1)
    best = ModelCheckpoint(OUT, monitor="val_accuracy", mode="max", save_last=True)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, deterministic=True, callbacks=[best],
        logger=CSVLogger(OUT), log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(FineTuned(len(train.classes)), train_loader, val_loader, ckpt_path="last")


if __name__ == "__main__":
    main()
