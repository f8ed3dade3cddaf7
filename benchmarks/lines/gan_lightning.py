"""A GAN with Lightning: `python gan_lightning.py OUT`. It starts its second process itself."""

import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.lines.gan_parts import NOISE, Ring, networks

(OUT,) = sys.argv[1:]


class GAN(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = networks()

    def training_step(self, real, _):
        for_generator, for_discriminator = self.optimizers()
        noise = torch.randn(len(real), NOISE, device=self.device)

        self.toggle_optimizer(for_discriminator)
        fake = self.generator(noise).detach()
        d_loss = (F.softplus(-self.discriminator(real)) + F.softplus(self.discriminator(fake))).mean()
        self.manual_backward(d_loss)
        for_discriminator.step()
        for_discriminator.zero_grad()
        self.untoggle_optimizer(for_discriminator)

        self.toggle_optimizer(for_generator)
        g_loss = F.softplus(-self.discriminator(self.generator(noise))).mean()
        self.manual_backward(g_loss)
        for_generator.step()
        for_generator.zero_grad()
        self.untoggle_optimizer(for_generator)

        self.log_dict({"d_loss": d_loss, "g_loss": g_loss}, prog_bar=True)

    def configure_optimizers(self):
        rate = {"lr": 2e-3, "betas": (0.5, 0.999)}
        return [torch.optim.Adam(net.parameters(), **rate) for net in (self.generator, self.discriminator)], []


def main():
    L.seed_everything(0, workers=True)
    loader = DataLoader(Ring(), batch_size=24, shuffle=True)
    kept = ModelCheckpoint(OUT, every_n_train_steps=20, save_last=True)  # each of the two optimizers' steps counts
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true", max_steps=60, deterministic=True,
        logger=CSVLogger(OUT), callbacks=[kept], log_every_n_steps=10,
    )  # fmt: skip
    trainer.fit(GAN(), loader, ckpt_path="last")


if __name__ == "__main__":
    main()
