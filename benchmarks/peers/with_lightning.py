"""Lightning, after its introduction.

python -m benchmarks.peers.with_lightning DATA OUT --epochs 2 --batch 64
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers import work


class Classifier(lightning.LightningModule):
    def __init__(self, args) -> None:
        super().__init__()
        self.args, self.model, self.criterion = args, work.model(args), nn.CrossEntropyLoss()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        loss = self.criterion(self.model(inputs), targets)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        inputs, targets = batch
        right = (self.model(inputs).argmax(1) == targets).float().mean()
        self.log("accuracy", right, sync_dist=True, batch_size=len(targets))

    def on_validation_start(self) -> None:
        work.tell(self.args, "trained", epoch=self.current_epoch)

    def on_validation_epoch_end(self) -> None:
        accuracy = float(self.trainer.callback_metrics.get("accuracy", 0.0))
        work.tell(self.args, "evaluated", epoch=self.current_epoch, accuracy=accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return work.optimizer(self.model)


def main() -> None:
    args = work.arguments()
    train, held_out = work.images(args)
    loading = {"batch_size": args.batch, "num_workers": args.workers, "persistent_workers": args.workers > 0}
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=args.epochs,
        default_root_dir=args.out,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    loaders = DataLoader(train, shuffle=True, drop_last=True, **loading), DataLoader(held_out, **loading)
    trainer.fit(Classifier(args), *loaders)


if __name__ == "__main__":
    main()
