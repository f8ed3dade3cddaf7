"""Lightning, after its introduction. Started again, it goes on from the last checkpoint.

python -m benchmarks.peers.with_lightning DATA OUT --epochs 2 --batch 64
"""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers import work


class Learner(lightning.LightningModule):
    def __init__(self, args) -> None:
        super().__init__()
        self.args, self.model = args, work.model(args)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        loss = work.loss(self.model(inputs), targets)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if index % 10 == 0:
            work.tell(self.args, "step", step=self.global_step)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        inputs, targets = batch
        right = (self.model(inputs).argmax(-1) == targets).float().mean()
        self.log("accuracy", right, sync_dist=True, batch_size=len(targets))

    def on_validation_start(self) -> None:
        work.tell(self.args, "trained", epoch=self.current_epoch)

    def on_validation_epoch_end(self) -> None:
        accuracy = float(self.trainer.callback_metrics.get("accuracy", 0.0))
        work.tell(self.args, "evaluated", epoch=self.current_epoch, accuracy=accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = work.optimizer(self.args, self.model)
        schedule = work.schedule(self.args, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    args = work.arguments()
    train, held_out = work.data(args)
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        precision="bf16-mixed" if args.precision == "bf16" else "32-true",
        max_epochs=args.epochs,
        default_root_dir=args.out,
        callbacks=[ModelCheckpoint(args.out / "checkpoints", save_last="link"), TQDMProgressBar(refresh_rate=10)],
        gradient_clip_val=args.clip,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    loader = DataLoader(train, shuffle=True, drop_last=True, **work.loading(args))
    evaluation = DataLoader(held_out, **work.loading(args, evaluation=True))
    trainer.fit(Learner(args), loader, evaluation, ckpt_path="last")


if __name__ == "__main__":
    main()
