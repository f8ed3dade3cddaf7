"""Gradients of W ranks are those of one process on the whole batch; parameters stay equal on all ranks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config.schema import DistributedConfig, RunConfig
from dist_train.config.shares import share
from dist_train.data.batch import Microbatch
from dist_train.errors import ExitCode, UserError
from dist_train.parallel.bucket import realigned
from dist_train.parallel.data_parallel import Parallel, ParallelOptions
from dist_train.parallel.process_group import ProcessGroup
from tests.distributed.training import train, write_configs

GLOBAL = 24


def _config(exact, microbatches):
    return RunConfig.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "mlp"},
            "exact": exact,
            "batch": {"global_size": GLOBAL, "microbatches": microbatches},
            "distributed": {"bucket_mb": 0.0005},  # several buckets
        }
    )


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3))


def _data(step=0):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(GLOBAL, 6, generator=draw), torch.randint(0, 3, (GLOBAL,), generator=draw)


def _microbatches(ranks, count, step=0):
    inputs, targets = _data(step)
    size = GLOBAL // count
    for number in share(ranks.rank, ranks.world_size, count):
        rows = torch.arange(number * size, (number + 1) * size)
        yield Microbatch(step=step, number=number, indices=rows, inputs=inputs[rows], targets=targets[rows])


def _backward(parallel, ranks, count, step=0):
    for microbatch in parallel.each(list(_microbatches(ranks, count, step))):
        (F.cross_entropy(parallel(microbatch.inputs), microbatch.targets) * parallel.loss_scale).backward()


def _exchanges(ranks, width):
    """In the second step: DDP lays its buckets out anew after the first."""
    with ProcessGroup(ranks, DistributedConfig()) as group:
        model = nn.Sequential(nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3))
        parallel = Parallel(model, group, ParallelOptions(microbatches=2))
        add, sizes = parallel._exchange.mean_into, []
        parallel._exchange.mean_into = lambda target, *more: (sizes.append(target.nbytes), add(target, *more))
        for step in range(2):
            sizes.clear()
            _backward(parallel, ranks, 2, step)
        parallel.close()
        return len(sizes)


def test_small_gradients_leave_at_once_on_a_cpu_and_large_ones_in_several_buckets(run_ranks):
    assert run_ranks(_exchanges, 2, 1024) == [1, 1]
    assert min(run_ranks(_exchanges, 2, 3072)) > 1


def _gradients(ranks, exact, microbatches):
    with ProcessGroup(ranks, _config(exact, microbatches).distributed) as group:
        parallel = Parallel(_model(), group, ParallelOptions.of(_config(exact, microbatches)))
        _backward(parallel, ranks, microbatches)
        parallel.close()
        return [p.grad.tolist() for p in parallel.parameters]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("world_size", "microbatches"), [(1, 1), (1, 4), (2, 2), (2, 8), (3, 3), (3, 8), (4, 6)])
def test_they_are_those_of_the_whole_batch(run_ranks, exact, world_size, microbatches):
    model, (inputs, targets) = _model().double(), _data()
    F.cross_entropy(model(inputs.double()), targets).backward()
    found = run_ranks(_gradients, world_size, exact, microbatches)
    assert all(gradients == found[0] for gradients in found)
    for gradient, parameter in zip(found[0], model.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(gradient).double(), parameter.grad, rtol=1e-4, atol=1e-7)


def _train(ranks, exact):
    with ProcessGroup(ranks, _config(exact, 6).distributed) as group:
        parallel = Parallel(_model(), group, ParallelOptions.of(_config(exact, 6)))
        optimizer = torch.optim.SGD(parallel.parameters, lr=0.1, momentum=0.9)
        for step in range(10):
            optimizer.zero_grad()
            _backward(parallel, ranks, 6, step)
            optimizer.step()
        parallel.close()
        return [p.tolist() for p in parallel.parameters]


@pytest.mark.parametrize("exact", [True, False])
def test_parameters_are_equal_on_all_ranks_after_many_steps(run_ranks, exact):
    of_ranks = run_ranks(_train, 3, exact)
    assert of_ranks[0] == of_ranks[1] == of_ranks[2]
    alone = run_ranks(_train, 1, exact)[0]
    assert (alone == of_ranks[0]) or not exact
    for left, right in zip(alone, of_ranks[0], strict=True):
        torch.testing.assert_close(torch.tensor(left), torch.tensor(right))


class _Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.forgotten = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.used(inputs)


def _unused(ranks):
    with ProcessGroup(ranks, _config(True, 2).distributed) as group:
        parallel = Parallel(_Half(), group, ParallelOptions.of(_config(True, 2)))
        try:
            _backward(parallel, ranks, 2)
        except UserError as error:
            return str(error), error.code
        finally:
            parallel.close()


def test_a_parameter_without_a_gradient_is_named(run_ranks):
    for message, code in run_ranks(_unused, 2):
        assert "2 parameters: forgotten.weight, forgotten.bias" in message
        assert code == ExitCode.USER_CODE


def _rescaled(ranks):
    """Half of the targets are not valid, unevenly over the microbatches."""
    config = _config(True, 4)
    with ProcessGroup(ranks, config.distributed) as group:
        parallel = Parallel(_model(), group, ParallelOptions.of(config))
        for microbatch in parallel.each(list(_microbatches(ranks, 4))):
            targets = microbatch.targets.masked_fill(microbatch.indices < 9, -100)
            loss = F.cross_entropy(parallel(microbatch.inputs), targets, ignore_index=-100, reduction="sum")
            parallel.count((targets != -100).sum())
            (loss * parallel.loss_scale / (GLOBAL // 4)).backward()
        parallel.rescale(GLOBAL)
        parallel.close()
        return [p.grad.tolist() for p in parallel.parameters]


def _known_and_counted(ranks):
    config, found = _config(True, 4), []
    with ProcessGroup(ranks, config.distributed) as group:
        for known in (3, None):
            parallel = Parallel(_model(), group, ParallelOptions.of(config))
            for microbatch in parallel.each(list(_microbatches(ranks, 4))):
                parallel.count(3 * len(microbatch.indices))
                parallel(microbatch.inputs).square().sum().backward()
            parallel.rescale(GLOBAL, known)
            parallel.close()
            found.append([p.grad.tolist() for p in parallel.parameters])
    return found


def test_a_number_of_targets_that_is_known_gives_the_bits_of_one_that_is_counted(run_ranks):
    for known, counted in run_ranks(_known_and_counted, 3):
        assert known == counted


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_loss_is_a_mean_over_the_valid_targets_of_all_ranks(run_ranks, world_size):
    model, (inputs, targets) = _model().double(), _data()
    F.cross_entropy(model(inputs[9:].double()), targets[9:]).backward()
    for gradients in run_ranks(_rescaled, world_size):
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(gradient).double(), parameter.grad, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------- memory is not part of the result


def _views_and_gradients(ranks):
    """For parameters of several layouts, where the hook takes their gradients to be, and where DDP has put them."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from dist_train.parallel.bucket import in_bucket

    torch.manual_seed(0)
    dist.init_process_group("gloo")
    model = nn.ParameterDict(
        {
            "plain": nn.Parameter(torch.randn(3, 4)),
            "transposed": nn.Parameter(torch.randn(5, 7).t()),
            "channels_last": nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
            "permuted": nn.Parameter(torch.randn(4, 3, 2).permute(2, 0, 1)),
            "gapped": nn.Parameter(torch.randn(4, 8)[:, ::2]),
            "one": nn.Parameter(torch.randn(())),
            "complex": nn.Parameter(torch.randn(3, 5, dtype=torch.complex64).t()),
        }
    )
    found = {}

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = model

        def forward(self, x):
            weights = {name: torch.arange(p.numel()).view(p.shape) for name, p in model.items()}
            return sum((p * weights[name] * x).abs().sum() for name, p in model.items())

    def hook(_, bucket):
        for parameter, view in zip(bucket.parameters(), in_bucket(bucket.buffer(), bucket.parameters()), strict=True):
            found[id(parameter)] = (view.clone(), view.data_ptr(), view.stride())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp = DistributedDataParallel(Sum(), gradient_as_bucket_view=True)
    ddp.register_comm_hook(None, hook)
    ddp(torch.ones(())).backward()
    return {
        name: (torch.equal(view, p.grad), place == p.grad.data_ptr(), strides == p.grad.stride())
        for name, p in model.items()
        for view, place, strides in [found[id(p)]]
    }


def test_gradients_are_read_where_ddp_has_put_them(run_ranks):
    """In a bucket each lies in its parameter's memory format; GradBucket.gradients() takes all for contiguous."""
    (places,) = run_ranks(_views_and_gradients, 1)
    assert len(places) == 7
    assert all(same == (True, True, True) for same in places.values()), places


def test_a_norm_is_taken_from_aligned_memory():

    whole = torch.arange(24.0)
    for begin in range(4):
        view = whole[begin : begin + 12].view(4, 3).t()
        found = realigned(view)
        assert found.data_ptr() % 64 == 0
        assert torch.equal(found, view) and found.stride() == view.stride()
        assert (found is view) == (begin == 0)


def test_a_users_optimizer_is_given_gradients_in_aligned_memory(run_ranks, tmp_path):
    """Where in a bucket they lie depends on what the process has done before: other addresses after a resume."""
    write_configs(tmp_path)
    optimizer = ("optimizer={name: 'tests.distributed.training:Aligned', lr: 0.1}", "model={name: mlp, hidden: [5, 3]}")
    for steps in (2, 4):
        codes = run_ranks(train, 2, tmp_path, "base.yaml", "run", *optimizer, f"train.stop_after={steps} steps")
        assert codes == [0, 0], (tmp_path / "run" / "logs" / "rank0.log").read_text()
