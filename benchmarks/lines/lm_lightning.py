"""A language model of characters with Lightning: `python lm_lightning.py TEXT OUT`. It starts a second process."""

import math
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

TEXT, OUT = sys.argv[1:]
STEPS, WARM_UP = 20, 5


class Windows(Dataset):
    def __init__(self, tokens, context):
        self.tokens, self.context = tokens, context

    def __len__(self):
        return len(self.tokens) - self.context

    def __getitem__(self, index):
        return self.tokens[index : index + self.context + 1]


class LanguageModel(L.LightningModule):
    def __init__(self, vocabulary):
        super().__init__()
        sizes = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
        self.model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes))

    def loss(self, tokens):
        scores = self.model(tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, tokens, _):
        loss = self.loss(tokens)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, tokens, _):
        self.log("val_loss", self.loss(tokens), sync_dist=True, prog_bar=True)

    def on_validation_epoch_end(self):
        self.log("val_perplexity", self.trainer.callback_metrics["val_loss"].exp(), sync_dist=True)

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

        def rate(step):
            if step < WARM_UP:
                return (step + 1) / WARM_UP
            return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    L.seed_everything(0, workers=True)
    text = Path(TEXT).read_text()
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    tokens = torch.tensor([letters[letter] for letter in text])
    cut = int(0.9 * len(tokens))
    train_loader = DataLoader(Windows(tokens[:cut], 64), batch_size=6, shuffle=True)
    val_loader = DataLoader(Windows(tokens[cut:], 64), batch_size=6)
    best = ModelCheckpoint(OUT, monitor="val_loss", save_last=True)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=STEPS, gradient_clip_val=1.0, deterministic=True,
        logger=CSVLogger(OUT), callbacks=[best], val_check_interval=10, limit_val_batches=10, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(LanguageModel(len(letters)), train_loader, val_loader, ckpt_path="last")


if __name__ == "__main__":
    main()
