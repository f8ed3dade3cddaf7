"""Hugging Face Accelerate, after its examples. Started again, it goes on after the last epoch that it has saved.

torchrun --standalone --nproc-per-node 2 -m benchmarks.peers.with_accelerate DATA OUT --epochs 2 --batch 64

(accelerate launch knows several processes on a CPU under MPI alone.)
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from benchmarks.peers import work


def main() -> None:
    args = work.arguments()
    # Otherwise a step of the schedule is taken for each process: huggingface/accelerate, docs of AcceleratedScheduler.
    precision = "bf16" if args.precision == "bf16" else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=precision, step_scheduler_with_optimizer=False)
    train, held_out = work.data(args)
    torch.manual_seed(0)
    model = work.model(args)
    optimizer = work.optimizer(args, model)
    model, optimizer, loader, evaluation = accelerator.prepare(
        model,
        optimizer,
        DataLoader(train, shuffle=True, drop_last=True, **work.loading(args)),
        DataLoader(held_out, **work.loading(args, evaluation=True)),
    )
    schedule = accelerator.prepare(work.schedule(args, optimizer.optimizer, args.epochs * len(loader)))
    first = 0
    if saved := sorted(args.out.glob("epoch_*")):
        accelerator.load_state(str(saved[-1]))
        first = int(saved[-1].name.removeprefix("epoch_")) + 1
    for epoch in range(first, args.epochs):
        model.train()
        for step, (inputs, targets) in enumerate(loader, epoch * len(loader)):
            optimizer.zero_grad()
            with accelerator.autocast():
                loss = work.loss(model(inputs), targets)
            accelerator.backward(loss)
            if args.clip:
                accelerator.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            schedule.step()
            if step % 10 == 0:
                accelerator.print(f"epoch {epoch} step {step} loss {loss.item():.4f}", flush=True)
                work.tell(args, "step", step=step + 1)
        work.tell(args, "trained", epoch=epoch)
        model.eval()
        right, seen = 0, 0
        with torch.no_grad():
            for inputs, targets in evaluation:
                found, given = accelerator.gather_for_metrics((model(inputs).argmax(-1), targets))
                right, seen = right + int((found == given).sum()), seen + given.numel()
        work.tell(args, "evaluated", epoch=epoch, accuracy=right / seen)
        accelerator.save_state(str(args.out / f"epoch_{epoch:02}"))
    accelerator.end_training()


if __name__ == "__main__":
    main()
