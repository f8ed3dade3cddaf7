"""Segmentation with Lightning: `python segmentation_lightning.py OUT`. It starts its second process itself."""

import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from examples.shapes import Shapes, SmallUNet

(OUT,) = sys.argv[1:]


class Segmentation(L.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.model = SmallUNet(classes)
        self.iou = MulticlassJaccardIndex(classes, ignore_index=255)
        self.accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=255)

    def training_step(self, batch, _):
        images, masks = batch
        loss = F.cross_entropy(self.model(images / 255), masks, ignore_index=255)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        images, masks = batch
        scores = self.model(images / 255)
        self.iou(scores, masks)
        self.accuracy(scores, masks)
        self.log("val_loss", F.cross_entropy(scores, masks, ignore_index=255), sync_dist=True)
        self.log("val_iou", self.iou, prog_bar=True)
        self.log("val_pixel_accuracy", self.accuracy)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    L.seed_everything(0, workers=True)
    train, val = Shapes("train", size=160), Shapes("evaluation", eval_size=30)
    train_loader = DataLoader(train, batch_size=16, shuffle=True, num_workers=1)
    val_loader = DataLoader(val, batch_size=16, num_workers=1)
    best = ModelCheckpoint(OUT, monitor="val_iou", mode="max", save_last=True)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, deterministic="warn", callbacks=[best],
        logger=CSVLogger(OUT), log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Segmentation(len(train.classes)), train_loader, val_loader, ckpt_path="last")


if __name__ == "__main__":
    main()
