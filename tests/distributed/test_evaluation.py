"""The same figures, to the last bit, for any number of ranks and either mode; and the right ones."""

import time
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.config.schema import Classification, DistributedConfig, RunConfig
from dist_train.data.batch import Microbatch
from dist_train.evaluate import evaluate, own_batches
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.tasks import build

CLASSES, BATCH = 7, 8


def _data(size):
    draw = torch.Generator().manual_seed(size)
    return torch.randn(size, 5, generator=draw), torch.randint(0, CLASSES, (size,), generator=draw)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def _figures(group, size, mode, slow=0.0):
    inputs, targets = _data(size)

    def batches(config, dataset, numbers, *_):
        for number in numbers:
            time.sleep(slow)
            rows = torch.arange(number * BATCH, min((number + 1) * BATCH, size))
            yield number, Microbatch(step=0, number=number, indices=rows, inputs=inputs[rows], targets=targets[rows])

    task = build(Classification(), tuple("abcdefg"))
    model, settings = _model(), {"mode": mode, "batch_size": BATCH}
    config = RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}, "eval": settings})
    with mock.patch("dist_train.evaluate.evaluation_batches", batches):
        result = evaluate(config, model, task, group, range(size))
    assert model.training
    return {name: value.hex() for name, value in result.metrics.items()}, result.confusion.tolist(), result.per_class


def _all_figures(ranks, sizes):
    with ProcessGroup(ranks, DistributedConfig()) as group:
        return [_figures(group, size, mode) for size in sizes for mode in ("sharded", "rank0")]


def test_any_number_of_ranks_and_either_mode_give_the_same_bits(run_ranks):
    sizes = [1, 2, 3, 7, 101]
    alone = run_ranks(_all_figures, 1, sizes)[0]
    assert alone[::2] == alone[1::2]
    for world_size in (2, 3, 4):
        assert run_ranks(_all_figures, world_size, sizes) == [alone] * world_size


def test_the_figures_are_scikit_learn_s(run_ranks):
    # Not above: every rank imports this file, and would spend most of its time on these.
    from sklearn.metrics import (
        accuracy_score,
        confusion_matrix,
        log_loss,
        precision_recall_fscore_support,
        top_k_accuracy_score,
    )

    metrics, confusion, per_class = run_ranks(_all_figures, 3, [101])[0][0]
    metrics = {name: float.fromhex(value) for name, value in metrics.items()}
    inputs, targets = _data(101)
    with torch.no_grad():
        probabilities = _model().eval()(inputs).softmax(1).double().numpy()
    labels, predicted = range(CLASSES), probabilities.argmax(1)
    assert confusion == confusion_matrix(targets, predicted, labels=labels).tolist()
    assert metrics["accuracy"] == accuracy_score(targets, predicted)
    assert metrics["top5"] == top_k_accuracy_score(targets, probabilities, k=5, labels=labels)
    assert metrics["loss"] == pytest.approx(log_loss(targets, probabilities, labels=labels), rel=1e-6)
    for average, ending in (("macro", ""), ("micro", "_micro")):
        expected = precision_recall_fscore_support(targets, predicted, average=average, labels=labels, zero_division=0)
        found = [metrics[name + ending] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(list(expected[:3]), rel=1e-12)
    each = precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert np.allclose(per_class[name], values, rtol=1e-12)


def _slow_rank_0(ranks):
    with ProcessGroup(ranks, DistributedConfig(timeout="1 s")) as group:
        return _figures(group, 24, "rank0", slow=0.7)[1]


def test_ranks_wait_for_rank_0_beyond_the_time_limit_of_collectives(run_ranks):
    first, second = run_ranks(_slow_rank_0, 2)
    assert first == second and np.sum(first) == 24


@pytest.mark.parametrize("mode", ["sharded", "rank0"])
def test_every_batch_is_worked_off_exactly_once(mode):
    for world_size in range(1, 6):
        for count in (0, 1, 2, 4, 13):
            places = [
                Ranks(rank=rank, local_rank=rank, world_size=world_size, local_world_size=world_size, node=0)
                for rank in range(world_size)
            ]
            assert [k for ranks in places for k in own_batches(ranks, count, mode)] == list(range(count))
