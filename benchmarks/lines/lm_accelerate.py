"""A language model of characters with Accelerate: `accelerate launch --cpu --num_processes 2 PROGRAM TEXT OUT`."""

import json
import math
import sys
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

TEXT, OUT = sys.argv[1:]
STEPS, WARM_UP, EVERY = 20, 5, 10


class Windows(Dataset):
    def __init__(self, tokens, context):
        self.tokens, self.context = tokens, context

    def __len__(self):
        return len(self.tokens) - self.context

    def __getitem__(self, index):
        return self.tokens[index : index + self.context + 1]


def rate(step):
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def loss_of(model, tokens):
    scores = model(tokens[:, :-1]).logits
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())


def evaluate(accelerator, model, loader):
    model.eval()
    losses = []
    for tokens in islice(loader, 10):
        with torch.no_grad():
            losses.append(accelerator.gather_for_metrics(loss_of(model, tokens).repeat(len(tokens))))
    model.train()
    return torch.cat(losses).mean().item()


def main():
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    set_seed(0)
    text = Path(TEXT).read_text()
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    tokens = torch.tensor([letters[letter] for letter in text])
    cut = int(0.9 * len(tokens))
    train_loader = DataLoader(Windows(tokens[:cut], 64), batch_size=6, shuffle=True)
    val_loader = DataLoader(Windows(tokens[cut:], 64), batch_size=6)

    sizes = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(letters), **sizes))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model, optimizer, train_loader, val_loader, schedule = accelerator.prepare(
        model, optimizer, train_loader, val_loader, schedule
    )

    saved = sorted(Path(OUT).glob("step_*"), key=lambda path: int(path.name.partition("_")[2]))
    step = 0
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name.partition("_")[2])
    while step < STEPS:
        epoch, into = divmod(step, len(train_loader))
        train_loader.set_epoch(epoch)
        for batch in accelerator.skip_first_batches(train_loader, into):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % EVERY == 0:
                val_loss = evaluate(accelerator, model, val_loader)
                train_loss = accelerator.reduce(loss.detach(), "mean").item()
                figures = {"step": step, "loss": train_loss, "val_loss": val_loss, "perplexity": math.exp(val_loss)}
                accelerator.print(figures)
                accelerator.save_state(f"{OUT}/step_{step}")
                if accelerator.is_main_process:
                    with open(f"{OUT}/metrics.jsonl", "a") as log:
                        log.write(json.dumps(figures) + "\n")
            if step == STEPS:
                break
    accelerator.end_training()


if __name__ == "__main__":
    main()
