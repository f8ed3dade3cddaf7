"""The worst samples of an evaluation: the same ones, in the same order and the same words, for any number of ranks."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.config.schema import Classification, DistributedConfig, RunConfig
from dist_train.data.datasets.base import TensorImages
from dist_train.data.datasets.digits import _table
from dist_train.evaluate import evaluate
from dist_train.parallel.process_group import ProcessGroup
from dist_train.tasks import build
from dist_train.worst import Words
from tests.distributed.training import train

CLASSES, MOST = 5, 7


def _scores(size):
    """With equal rows, which have equal losses, and NaN."""
    draws = torch.Generator().manual_seed(size)
    scores = torch.randn(-(-size // 3), CLASSES, generator=draws).repeat_interleave(3, 0)[:size]
    scores[size // 2] = torch.nan
    return scores, torch.arange(size) // 3 % CLASSES


def _worst(ranks, sizes, batch_sizes):
    task, found = build(Classification(), tuple("abcde")), {}
    with ProcessGroup(ranks, DistributedConfig()) as group:
        for size in sizes:
            dataset = TensorImages(*_scores(size))
            for batch_size in batch_sizes:
                for mode in ("sharded", "rank0"):
                    settings = {"batch_size": batch_size, "mode": mode}
                    raw = {"data": {"name": "digits"}, "model": {"name": "mlp"}, "eval": settings}
                    config = RunConfig.model_validate(raw | {"tracking": {"worst_samples": MOST}})
                    result = evaluate(config, nn.Identity(), task, group, dataset)
                    words = Words(classes=tuple("abcde"))
                    rows = [json.dumps(words.row(one, "")) for one in result.worst]
                    found[size, batch_size, mode] = rows
    return found


def test_they_are_the_same_for_any_ranks_and_batches(run_ranks):
    sizes, batch_sizes = (1, 6, 53), (8, 5, 100)
    [alone] = run_ranks(_worst, 1, sizes, batch_sizes)
    for size in sizes:
        assert len({str(alone[size, batch, mode]) for batch in batch_sizes for mode in ("sharded", "rank0")}) == 1
        scores, targets = _scores(size)
        losses = nn.functional.cross_entropy(scores, targets, reduction="none").double().numpy()
        order = np.lexsort((np.arange(size), -np.nan_to_num(losses, nan=np.inf)))[:MOST]
        assert [json.loads(row)["index"] for row in alone[size, 8, "sharded"]] == order.tolist()
    for world_size in (2, 3):
        assert run_ranks(_worst, world_size, sizes, batch_sizes) == [alone] * world_size


class Planted(TensorImages):
    """The digits, with wrong labels in the evaluation split."""

    WRONG = (7, 100, 211, 356)
    classes = tuple("0123456789")

    def __init__(self, split):
        pixels, targets = _table()
        rows = torch.arange(len(targets)) % 5 == 0
        rows = rows if split == "evaluation" else ~rows
        targets = targets[rows]
        if split == "evaluation":
            wrong = torch.tensor(self.WRONG)
            targets[wrong] = (targets[wrong] + 5) % 10
        super().__init__((pixels.view(-1, 1, 8, 8)[rows] * 15.9).to(torch.uint8), targets)


PLANTED = """
name: planted
data: {name: "tests.distributed.test_worst:Planted"}
model: {name: cnn, width: 8}
optimizer: {name: sgd, lr: 0.1}
batch: {microbatches: 6, global_size: 48}
train: {duration: 3 epochs, sanity_check: false}
tracking: {wandb: {mode: disabled}}
"""


@pytest.mark.long
def test_wrong_labels_stand_among_them(run_ranks, tmp_path):
    (tmp_path / "c.yaml").write_text(PLANTED)
    kept = []
    for ranks, more in ((1, []), (2, []), (3, ["eval.mode=rank0"])):
        assert run_ranks(train, ranks, tmp_path, "c.yaml", str(ranks), *more) == [0] * ranks
        kept.append((tmp_path / f"{ranks}/evaluations/evaluation.json").read_bytes())
    assert kept == [kept[0]] * 3
    rows = json.loads(kept[0])["worst"]
    assert {row["index"] for row in rows[:12]} >= set(Planted.WRONG)
    assert all((tmp_path / "1" / row["picture"]).read_bytes().startswith(b"\xff\xd8\xff") for row in rows)
    assert len(list((tmp_path / "1/evaluations/evaluation").iterdir())) == len(rows) == 24
