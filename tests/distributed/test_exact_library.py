"""dist_train.exact: a script with its own loop ends in the same bits however it is started, and after a kill."""

import difflib
import json
import math
import os
import runpy
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dist_train import exact
from dist_train.errors import ExitCode, UserError
from dist_train.exact.state import flattened, unflattened
from tests.distributed.sometimes import Experts
from tests.end_to_end.test_run import OURS, TORCHRUN, go

ROOT = Path(__file__).parents[2]
EXAMPLES, RUNNER = ROOT / "examples", Path(__file__).with_name("own_loops.py")
STEPS, GLOBAL, V = "24", 24, 6


# ---------------------------------------------------------------- whole scripts


def last_line(output: str) -> str:
    line = output.splitlines()[-1]
    assert len(line) == 64, output
    return line


def in_the_pool(ranks, example, folder):
    """The fingerprint that an example prints, and what it has saved last."""
    os.chdir(folder)
    sys.argv = [example, STEPS, f"{ranks.world_size}"]
    found = runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    state = found.get("state") or {"model": found["model"], "optimizer": found["optimizer"]}
    value = exact.fingerprint(**state)
    exact.close()
    return value


FURTHER = [pytest.param(name, marks=pytest.mark.long) for name in ("gan", "distillation")]


@pytest.mark.parametrize("example", ["own_loop", *FURTHER])
def test_an_example_ends_in_the_same_bits_on_any_number_of_ranks_and_after_a_kill(run_ranks, tmp_path, example):
    """Under `dist-train run` a rank of three is killed and all of them are started again."""
    [expected] = run_ranks(in_the_pool, 1, example, tmp_path)
    for world_size in (2, 3):
        assert run_ranks(in_the_pool, world_size, example, tmp_path) == [expected] * world_size
    words = ["--max-restarts=1", "--nproc-per-node=3", str(RUNNER), "17" if example != "gan" else "33"]
    done = go(tmp_path / "r", *OURS, *words, str(EXAMPLES / f"{example}.py"), STEPS, "out")
    assert last_line(done.stdout) == expected and "SIGKILL" in done.stderr
    assert sorted(path.name for path in (tmp_path / "r/out").glob("[!.]*")) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("example", ["own_loop", *FURTHER])
def test_an_example_ends_in_the_same_bits_alone_and_under_torchrun(run_ranks, tmp_path, example):
    script = str(EXAMPLES / f"{example}.py")
    [expected] = run_ranks(in_the_pool, 1, example, tmp_path)
    alone = subprocess.run(
        [sys.executable, script, STEPS, "alone"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert last_line(alone.stdout) == expected
    done = go(tmp_path / "t", *TORCHRUN, "--nproc-per-node", "2", script, STEPS, "out")
    assert last_line(done.stdout) == expected


def test_few_lines_are_added_to_a_plain_loop_and_the_document_shows_them():
    plain, own = ((EXAMPLES / f"{name}_loop.py").read_text().splitlines() for name in ("plain", "own"))
    end_of_title = plain.index('"""'), own.index('"""')
    changes = [
        line
        for line in difflib.unified_diff(plain[end_of_title[0] :], own[end_of_title[1] :], lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    assert 10 <= sum(line.startswith("+") and line != "+" for line in changes) <= 20
    shown = (ROOT / "docs/own-loop.md").read_text().partition("```diff\n")[2].partition("\n```")[0].splitlines()
    assert [line for line in shown if line.startswith(("+", "-"))] == [line for line in changes if line not in "+-"]


def test_it_is_imported_without_what_a_loop_of_ones_own_has_no_use_for():
    script = "import sys, dist_train.exact; print(*{'pydantic', 'wandb', 'yaml', 'rich'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ---------------------------------------------------------------- the model


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Linear(20, 3))


def _drawn(ranks):
    """Gradients, buffers and the next draw, where a script draws its samples by itself; the group is the script's."""
    torch.distributed.init_process_group("gloo")
    parallel = exact.DistributedDataParallel(_net(), microbatches=V, seed=3)
    samples = {}
    for step in range(2):
        for number in parallel.each(step):
            inputs = torch.randn(GLOBAL // V, 6)
            samples[step, number] = inputs.tolist()
            F.mse_loss(parallel(inputs), torch.ones(GLOBAL // V, 3), reduction="sum").backward()
    exact.clip(parallel, 1e9)
    state = [t.tolist() for t in parallel.state_dict().values()]
    found = [p.grad.tolist() for p in parallel.parameters()], state, torch.rand(1).item(), list(parallel.state_dict())
    exact.close()
    assert torch.distributed.is_initialized()
    torch.distributed.destroy_process_group()
    return samples, found


def test_gradients_are_sums_over_all_microbatches_and_draws_do_not_depend_on_the_ranks(run_ranks):
    [(samples, expected)] = run_ranks(_drawn, 1)
    for world_size in (2, 3):
        parts = run_ranks(_drawn, world_size)
        assert {number: inputs for part, _ in parts for number, inputs in part.items()} == samples
        assert [found for _, found in parts] == [expected] * world_size
    net = _net().double()
    for number in range(V):
        inputs = torch.tensor(samples[1, number], dtype=torch.float64)
        F.mse_loss(net(inputs), torch.ones(GLOBAL // V, 3, dtype=torch.float64), reduction="sum").backward()
    for gradient, parameter in zip(expected[0], net.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(gradient).double(), parameter.grad, rtol=1e-4, atol=1e-5)


def _refused(ranks):
    """What is wrong in a loop, each told in one line."""
    exact.seed(0)
    parallel = exact.DistributedDataParallel(_net(), microbatches=V)
    other = exact.DistributedDataParallel(nn.Linear(6, 1), microbatches=V)
    inputs, said = torch.ones(4, 6), []

    def twice():
        for _ in parallel.each(0):
            for _ in range(2):
                parallel(inputs).sum().backward()

    def nested():
        for _ in parallel.each(0):
            for _ in other.each(0):
                pass

    def without_backward():
        for _ in parallel.each(0):
            pass

    for wrong in (
        twice,
        nested,
        without_backward,
        lambda: parallel(inputs),
        lambda: list(parallel.each([])),
        lambda: exact.DistributedDataParallel(_net(), microbatches=1 if ranks.world_size == 2 else 0),
        lambda: exact.DistributedDataParallel(nn.ReLU()),
        lambda: exact.sum({0: 1}) if ranks.world_size > 1 else exact.sum({0: 1, 1: 1.5}),
        lambda: exact.init(),
    ):
        with pytest.raises(UserError) as error:
            wrong()
        assert "\n" not in str(error.value)
        said.append(str(error.value))
    for _ in parallel.each(1):
        break
    assert all(p.grad is None for p in parallel.parameters())
    exact.close()
    return said


def test_what_is_wrong_in_a_loop_is_told_in_one_line(run_ranks):
    words = ["several backwards", "inside of another", "does not depend on 6 parameters", "outside of `for", "has the"]
    words += ["microbatches=", "ReLU has no parameter", "exact.sum: ", "is open already"]
    for said in chain.from_iterable(run_ranks(_refused, world_size) for world_size in (1, 2)):
        assert [word for word, line in zip(words, said, strict=True) if word not in line] == []


def _adversaries(ranks):
    """Gradients and buffers of two models, one trained through the other, before either has taken a step."""
    exact.seed(0)
    critic, maker = (exact.DistributedDataParallel(_net(), microbatches=V) for _ in range(2))
    final = nn.Linear(3, 6)
    for _ in critic.each(0):
        critic(torch.randn(4, 6)).square().sum().backward()
    before = [p.grad.tolist() for p in critic.parameters()], [t.tolist() for t in critic.buffers()]
    for _ in maker.each(0):
        critic(final(maker(torch.randn(4, 6)))).square().sum().backward()
    assert before == ([p.grad.tolist() for p in critic.parameters()], [t.tolist() for t in critic.buffers()])
    found = before, [p.grad.tolist() for p in maker.parameters()]
    exact.close()
    return found


def test_one_model_is_trained_through_another_that_does_not_change(run_ranks):
    [expected] = run_ranks(_adversaries, 1)
    assert run_ranks(_adversaries, 2) == [expected] * 2


def _sometimes(ranks):
    exact.seed(0)
    model = Experts(shape=(3, 8, 8), classes=4)
    parallel = exact.DistributedDataParallel(model, microbatches=V, unused_parameters="allow", bucket_mb=0.001)
    for _ in parallel.each(0):
        parallel.complete(parallel(torch.randn(2, 3, 8, 8)).square().sum()).backward()
    found = [p.grad.tolist() for p in parallel.parameters()]
    exact.close()
    return found


def test_parameters_may_take_no_part(run_ranks):
    [expected] = run_ranks(_sometimes, 1)
    assert run_ranks(_sometimes, 3) == [expected] * 3


# ---------------------------------------------------------------- samples and sums


class Noisy(torch.utils.data.Dataset):
    """Samples that draw."""

    def __len__(self):
        return 101

    def __getitem__(self, index):
        return index + torch.rand(()), index


def _samples(ranks, options):
    loader = exact.loader(Noisy(), global_batch=GLOBAL, microbatches=V, **options)
    found = {
        (m.step, m.number): (m.indices.tolist(), m.inputs.tolist(), m.targets.tolist()) for step in loader for m in step
    }
    count = len(loader)
    exact.close()
    return found, count


def test_samples_are_permutations_and_the_same_for_any_number_of_ranks(run_ranks):
    whole = run_ranks(_samples, 1, {"epochs": 2})[0][0]
    for epoch in range(2):
        of_epoch = [index for (step, _), (rows, _, _) in whole.items() if step // 4 == epoch for index in rows]
        assert len(set(of_epoch)) == len(of_epoch) == 96 and set(of_epoch) <= set(range(101))
        assert of_epoch != sorted(of_epoch)
    assert whole[0, 0] != whole[4, 0]
    for world_size, options in ((2, {"epochs": 2}), (3, {"steps": 8, "start": 3, "workers": 1})):
        start = options.get("start", 0)
        found = run_ranks(_samples, world_size, options)
        assert {count for _, count in found} == {8 - start}
        assert {place: rows for part, _ in found for place, rows in part.items()} == {
            place: rows for place, rows in whole.items() if place[0] >= start
        }


def _sums(ranks):
    found = {}
    for batch in exact.evaluation_loader(Noisy(), batch_size=7):
        noise = torch.randn(len(batch.targets)) * 10.0 ** (batch.number % 9)
        found[batch.number] = {"float": (batch.inputs * noise).sum(), "rows": batch.targets.sum(), "count": 7.5}
    total = exact.sum(found)
    one = exact.sum({number: values["rows"] for number, values in found.items()})
    nothing = exact.sum({})
    exact.close()
    return {name: (value.item(), str(value.dtype)) for name, value in total.items()}, one.item(), nothing


def test_sums_are_the_same_for_any_number_of_ranks(run_ranks):
    [expected] = run_ranks(_sums, 1)
    assert expected[0]["rows"] == (5050, "torch.int64") and expected[0]["count"] == (112.5, "torch.float64")
    assert expected[1:] == (5050, {})
    for world_size in (2, 3):
        assert run_ranks(_sums, world_size) == [expected] * world_size


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"global_batch": 20}, "a multiple of the microbatches"),
        ({"global_batch": 120}, "at most the samples"),
        ({"global_batch": 0}, "global_batch=0: it is a whole number, at least 1"),
        ({"global_batch": 24, "microbatches": 0}, "microbatches=0 with 1 ranks"),
        ({"global_batch": 24, "epochs": 1, "steps": 2}, "give one of them"),
        ({"global_batch": 24, "steps": -1}, "steps=-1: it is a whole number"),
        ({"global_batch": 24, "workers": 1.5}, "workers=1.5"),
        ({"global_batch": 24, "dataset": iter([])}, "has no len()"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(run_ranks, wrong, words):
    [said] = run_ranks(_wrong, 1, wrong)
    assert words in said and "\n" not in said


def _wrong(ranks, wrong):
    with pytest.raises(UserError) as error:
        exact.loader(**{"dataset": Noisy(), "microbatches": V, **wrong})
    exact.close()
    return str(error.value)


# ---------------------------------------------------------------- checkpoints


def _trained(folder, steps):
    """A model in bfloat16 with tied weights, an optimizer whose state is not, schedulers, a scaler, numbers."""
    exact.seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    model = exact.DistributedDataParallel(net, microbatches=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.99))
    state = {
        "model": model,
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
        "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
        "scaler": torch.amp.GradScaler("cpu"),
        "numbers": {"best": -math.inf, "at": (1, 2)},
    }
    start = exact.resume(folder, **state)
    for step in range(start, steps):
        for _ in model.each(step):
            state["scaler"].scale(model(torch.randn(4, 6)).square().sum()).backward()
        state["scaler"].step(optimizer)
        state["scaler"].update()
        state["schedule"].step()
        state["numbers"]["best"] = step / 7
        exact.save(folder, step=step + 1, **state)
    return start, exact.fingerprint(**state), torch.rand(1).item()


def _life(ranks, folder, steps):
    found = _trained(folder, steps)
    exact.close()
    return found


def test_a_script_goes_on_from_the_newest_sound_checkpoint_on_any_number_of_ranks(run_ranks, tmp_path):
    [(_, *expected)] = run_ranks(_life, 1, tmp_path / "whole", 6)
    run_ranks(_life, 3, tmp_path / "run", 4)
    damaged = tmp_path / "run/step-00000004/optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0\0")
    assert run_ranks(_life, 2, tmp_path / "run", 6) == [(3, *expected)] * 2
    assert run_ranks(_life, 1, tmp_path / "run", 6) == [(6, *expected)]


SAVES = """
import sys
from torch import nn
from dist_train import exact
try:
    exact.save("out", step=1, model=nn.Linear(2, 2))
    print("saved", flush=True)
    sys.stdin.read()
except exact.UserError as error:
    print(int(error.code), error)
"""


def test_a_second_script_that_saves_into_the_folder_is_refused_while_the_first_one_lives(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start():
        words = [sys.executable, "-c", SAVES]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(words, cwd=tmp_path, env=environment, **pipes)

    with start() as first:
        assert first.stdout.readline() == "saved\n"
        with start() as second:
            said, _ = second.communicate()
        assert said.startswith(f"{int(ExitCode.OWNED)} ") and said.count("\n") == 1 and str(first.pid) in said, said
        first.kill()
    with start() as third:
        assert third.communicate()[0] == "saved\n", "the dead hold nothing"


def _unfit(ranks, folder):
    exact.seed(0)
    said = []
    exact.save(folder, step=1, model=nn.Linear(2, 2), numbers={"a": 1})
    for wrong in (
        lambda: exact.resume(folder, model=nn.Linear(3, 2)),
        lambda: exact.resume(folder, net=nn.Linear(2, 2)),
        lambda: exact.resume(folder, model=nn.ReLU),
        lambda: exact.save(folder, step=2, numbers={"a": {1, 2}}),
        lambda: exact.save(folder, step=-1, numbers={}),
        lambda: exact.save("/proc/nowhere", step=1, numbers={}),
    ):
        with pytest.raises(UserError) as error:
            wrong()
        assert "\n" not in str(error.value)
        said.append((str(error.value), error.value.code))
    (folder / "step-00000001/model.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint can be used"):
        exact.resume(folder, numbers={})
    exact.close()
    return said


def test_what_does_not_fit_is_told_in_one_line(run_ranks, tmp_path):
    [said] = run_ranks(_unfit, 1, tmp_path / "c")
    expected = [("does not fit this model: Error(s) in loading", ExitCode.CANNOT_RESUME)]
    expected += [("has model, numbers, and not net", ExitCode.CANNOT_RESUME), ("model is a type", ExitCode.CONFIG)]
    expected += [("numbers/a is a set, which cannot be saved without pickle", ExitCode.CHECKPOINT_IO)]
    expected += [
        ("exact.save: step=-1", ExitCode.CONFIG),
        ("/proc/nowhere, or its lease: No such", ExitCode.CHECKPOINT_IO),
    ]
    for (line, code), (words, wanted) in zip(said, expected, strict=True):
        assert words in line and code == wanted


def test_states_come_back_as_they_were():
    first, second = torch.arange(3), torch.ones(2, dtype=torch.bfloat16)
    state = {"a/b": first, "a": {"b": second, 0: (1, [None, "x"]), "0": True}, "c": Counter({30: 2}), "d": math.inf}
    tensors = {}
    tree = json.loads(json.dumps(flattened(state, "s", tensors)))
    found = unflattened(tree, tensors)
    assert found["a/b"] is first and found["a"].pop("b") is second and state["a"].pop("b") is second
    assert {k: v for k, v in found.items() if k != "a/b"} == {k: v for k, v in state.items() if k != "a/b"}
    assert type(found["c"]) is Counter and type(found["a"][0]) is tuple
