"""Trainings that begin with others' weights, with frozen parts, rates by group and layer, and Muon."""

import pytest
import torch

from dist_train import models
from dist_train.config.schema import Cnn
from tests.distributed.test_exactness import dies
from tests.distributed.training import result, train, write_configs

TUNED = """
extends: base.yaml
model: {start_weights: WEIGHTS, freeze: ["block1.*"]}
optimizer: {layer_decay: 0.8, groups: [{match: [head.*], lr: 0.2}, {match: ["*.1.*"], lr: 0.05, weight_decay: 0.01}]}
train: {duration: 8 steps, ema_decay: 0.9}
"""
MUON = """
extends: base.yaml
model: {name: "tests.distributed.training:Normed", args: {width: 32}, freeze: ["last.0.bias"]}
optimizer: {name: muon, layer_decay: 0.9, groups: [{match: ["blocks.1.*"], lr: 0.01}], adamw: {match: [first.weight]}}
train: {duration: 8 steps, clip_norm: 0.5}
"""


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    state = models.build(Cnn(width=8), shape=(1, 8, 8), classes=3, seed=5).state_dict()
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.ckpt")
    (tmp_path / "tuned.yaml").write_text(TUNED.replace("WEIGHTS", str(tmp_path / "w.ckpt")))
    (tmp_path / "muon.yaml").write_text(MUON)
    return tmp_path


@pytest.mark.parametrize("config", ["tuned.yaml", "muon.yaml"])
def test_it_ends_in_the_same_bits_on_1_2_3_ranks_and_after_a_kill(run_ranks, folder, config):
    assert run_ranks(train, 1, folder, config, "w1") == [0]
    arguments = (folder, config, "pieces", "checkpoint.every=2 steps")
    dies(run_ranks, 3, [1], ("step", 4), *arguments)
    (folder / "w.ckpt").unlink()  # a resume has all in its checkpoint
    assert run_ranks(train, 2, *arguments) == [0, 0]
    assert result(folder / "pieces") == result(folder / "w1")


def test_what_was_loaded_and_frozen_is_said_and_neither_may_change(run_ranks, folder):
    run_ranks(train, 1, folder, "tuned.yaml", "run", "train.stop_after=2 steps")
    said = (folder / "run" / "logs" / "rank0.log").read_text()
    assert f"weights of {folder / 'w.ckpt'}: 18 tensors loaded; begun anew: head.bias, head.weight\n" in said
    assert "model.freeze: 3 of 11 parameters, 88 numbers, stay as they are; 1 norms keep their statistics\n" in said
    for change in ("model.start_weights=null", "model.freeze=[]", "optimizer.groups=[]", "optimizer.layer_decay=null"):
        assert run_ranks(train, 1, folder, "tuned.yaml", "run", change) == [4]
    assert run_ranks(train, 1, folder, "tuned.yaml", "run") == [0]


def test_the_averaged_weights_of_another_runs_checkpoint_begin_a_training(run_ranks, folder):
    run_ranks(train, 1, folder, "tuned.yaml", "first")
    (checkpoint,) = (folder / "first" / "checkpoints").glob("step-00000008")
    start = ["optimizer.lr=1.0e-30", "train.duration=1 steps", "model.freeze=[block*]"]
    assert run_ranks(train, 2, folder, "base.yaml", "second", f"model.start_weights={checkpoint}", *start) == [0, 0]
    first, second = ([r for r in result(folder / name)[1] if r["kind"] != "train"][-1] for name in ("first", "second"))
    assert (second["loss"], second["accuracy"]) == (first["loss"], first["accuracy"])
