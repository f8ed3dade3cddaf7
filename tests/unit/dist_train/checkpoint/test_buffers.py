"""The memory that saves share: the bytes of safetensors' own files, made once and used again."""

import ctypes
import os
import resource

import pytest
import safetensors.torch
import torch

from dist_train.checkpoint.buffers import _NAMES, Buffers, forget_cuda_error
from dist_train.errors import UserError

DTYPES = [*_NAMES]


@pytest.fixture
def buffers():
    buffers = Buffers()
    yield buffers
    buffers.close()


def _taken(buffers, **files):
    parts = buffers.take({name: tensors for name, tensors in files.items()})
    return {name: bytes(buffers.memory[begin : begin + length]) for name, (begin, length) in parts.items()}


def _drawn(dtype, *shape):
    """Any bits at all."""
    flat = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return (flat % 2 if dtype == torch.bool else flat).view(dtype).reshape(shape)


def test_files_are_safetensors_to_the_byte(buffers):
    torch.manual_seed(0)
    tensors = {f"{dtype}.{n}": _drawn(dtype, *shape) for dtype in DTYPES for n, shape in enumerate([(3, 5), (7,), ()])}
    odd = {'ü/"\\\n': torch.ones(3), "none": torch.empty(0, 4), "z": torch.tensor(1.0), "a\x01": torch.arange(5)}
    files = _taken(buffers, model={**tensors, **odd}, optimizer={}, ema=odd)
    assert files["model"] == safetensors.torch.save({**tensors, **odd})
    assert files["optimizer"] == safetensors.torch.save({})
    assert files["ema"] == safetensors.torch.save(odd)


def test_views_and_tied_tensors_become_whole_ones(buffers):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {"a": weight, "tied": weight, "turned": torch.randn(4, 6).t(), "part": torch.randn(10)[3:7]}
    file = _taken(buffers, model=tensors)["model"]
    assert file == safetensors.torch.save({name: t.clone().contiguous() for name, t in tensors.items()})


def test_parameters_that_need_gradients_are_copied_as_they_are(buffers):
    parameter = torch.nn.Parameter(torch.randn(5))
    file = _taken(buffers, model={"w": parameter})["model"]
    assert torch.equal(safetensors.torch.load(file)["w"], parameter.detach())


def test_the_memory_is_made_once_and_grows_with_the_state(buffers):
    def address():
        return torch.frombuffer(buffers.memory, dtype=torch.uint8).data_ptr()

    _taken(buffers, model={"w": torch.zeros(100_000)})
    first, size = address(), os.fstat(buffers.descriptor).st_size
    for value in (1.0, 2.0):
        file = _taken(buffers, model={"w": torch.full((100_000,), value)})["model"]
        assert file == safetensors.torch.save({"w": torch.full((100_000,), value)})
    smaller = _taken(buffers, model={"w": torch.ones(7)}, optimizer={"m": torch.ones(7)})
    assert smaller["optimizer"] == safetensors.torch.save({"m": torch.ones(7)})
    assert address() == first and os.fstat(buffers.descriptor).st_size == size
    larger = {"w": torch.ones(300_000)}
    assert _taken(buffers, model=larger)["model"] == safetensors.torch.save(larger)
    assert os.fstat(buffers.descriptor).st_size > size


def test_it_is_all_there_before_it_is_written_to(buffers):
    """Else a machine that is out of memory would answer the copy with SIGBUS."""
    _taken(buffers, model={"w": torch.zeros(1_000_000)})
    status = os.fstat(buffers.descriptor)
    assert status.st_blocks * 512 >= status.st_size > 4_000_000


def test_memory_that_cannot_be_had_is_an_error_and_no_end(buffers):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    small, large = {"w": torch.ones(10)}, {"w": torch.ones(100_000)}
    _taken(buffers, model=small)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            _taken(buffers, model=large)
        assert _taken(buffers, model=small)["model"] == safetensors.torch.save(small)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _taken(buffers, model=large)["model"] == safetensors.torch.save(large)


def test_a_type_that_no_file_can_hold_is_refused_by_name(buffers):
    with pytest.raises(UserError, match="waves is torch.complex128"):
        _taken(buffers, model={"waves": torch.zeros(2, dtype=torch.complex128)})


@pytest.mark.skipif(torch.version.cuda is None, reason="torch without CUDA")
def test_the_runtime_that_torch_loads_can_be_asked_for_its_error():
    """That it forgets it then, only a GPU can show: tests/gpu."""
    assert hasattr(ctypes.CDLL(None), "cudaGetLastError")
    forget_cuda_error()
