"""The copy of a state that a save writes: memory shared with the writer, laid out as the files will be.

A file of tensors is what safetensors makes of them, to the byte: 8 bytes with the length of the header, the header in
JSON, the tensors one after another (https://huggingface.co/docs/safetensors, "Format").
"""

import ctypes
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from dist_train.errors import ExitCode, UserError

Part = tuple[int, int]
"""Where a file lies in the memory: its first byte, and its length."""
Tensors = Mapping[str, Tensor]
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls them, in the order in which it puts them into a file: the widest first, all are aligned."""
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}
_PAGE = mmap.PAGESIZE


class Buffers:
    """Room for one copy, made by the first `take` and used again by all later ones.

    It is a memfd, so /dev/shm may be as small as containers make it, and all of it is allocated before it is written
    to, so that a machine without the memory for it says ENOMEM here and sends no SIGBUS later. A process that is given
    the descriptor can map it.

    Attributes:
        descriptor: of the memory; its size changes with the state's.
        memory: all of it.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("checkpoint")
        self.memory = memoryview(b"")
        self._pinned = False
        self._layout: list[tuple[str, str, torch.Size, torch.dtype]] = []
        self._views: list[Tensor] = []
        self._parts: dict[str, Part] = {}

    def take(self, files: Mapping[str, Tensors]) -> dict[str, Part]:
        """Copies the tensors of each file; returns where the files lie. The copy is complete on return.

        Raises:
            OSError: when there is no memory for it.
            UserError: (exit 14) when a tensor is of a type that safetensors has no name for.
        """
        layout = [(file, name, t.shape, t.dtype) for file, tensors in files.items() for name, t in tensors.items()]
        if layout != self._layout or not self._parts:
            self._lay_out(files)
            self._layout = layout
        sources = [tensors[name].detach() for tensors in files.values() for name in _ordered(tensors)]
        for view, source in zip(self._views, sources, strict=True):
            view.copy_(source, non_blocking=True)
        if any(tensor.is_cuda for tensor in sources):
            torch.cuda.current_stream().synchronize()
        return dict(self._parts)

    def close(self) -> None:
        """Gives the memory back; `take` must not be called again.

        What is page-locked goes back with the process: to unlock it waits for all that the GPU has to do, which after
        a failure may never end.
        """
        if not self._pinned:
            self._release()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _lay_out(self, files: Mapping[str, Tensors]) -> None:
        headers = {file: safetensors_header(tensors) for file, tensors in files.items()}
        self._parts, end = {}, 0
        for file, tensors in files.items():
            length = len(headers[file]) + sum(map(_size, tensors.values()))
            self._parts[file] = (end, length)
            end += -(-length // _PAGE) * _PAGE
        if end > len(self.memory):
            self._grow(end, pinned=any(t.is_cuda for tensors in files.values() for t in tensors.values()))
        flat = torch.frombuffer(self.memory, dtype=torch.uint8)
        self._views = []
        for file, tensors in files.items():
            begin, _ = self._parts[file]
            self.memory[begin : begin + len(headers[file])] = headers[file]
            self._views += _views(flat, begin + len(headers[file]), tensors)

    def _grow(self, size: int, pinned: bool) -> None:
        self._release()
        os.posix_fallocate(self.descriptor, 0, size)
        # Populated: else the first copy would meet a page fault every 4 KiB.
        self.memory = memoryview(mmap.mmap(self.descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE))
        if pinned:
            self._pin()

    def _pin(self) -> None:
        """Page-locked, the GPU fills it by itself at the bus's full speed (CUDA C++ Best Practices Guide, 10.1.1).
        A system that allows no more locked pages leaves it as it is, which is slower and no less right."""
        address = torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()
        self._pinned = int(torch.cuda.cudart().cudaHostRegister(address, len(self.memory), 0)) == 0
        if not self._pinned:
            forget_cuda_error()

    def _release(self) -> None:
        """Between two saves, where the GPU has nothing to do with the memory any more."""
        if self._pinned:
            address = torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()
            if int(torch.cuda.cudart().cudaHostUnregister(address)):
                forget_cuda_error()
        self._pinned, self._layout, self._views = False, [], []
        self.memory = memoryview(b"")


def forget_cuda_error() -> None:
    """The runtime keeps the error of a failed call until somebody asks for it, which the next launch of a kernel would
    do, and raise it as its own. torch does not offer the call, but has the runtime loaded."""
    ask = getattr(ctypes.CDLL(None), "cudaGetLastError", None)
    if ask is not None:
        ask()
    else:  # a build with the runtime inside
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")


def safetensors_header(tensors: Tensors) -> bytes:
    """Of a file that holds these; its length is a multiple of 8."""
    entries, end = {}, 0
    for name in _ordered(tensors):
        tensor = tensors[name]
        begin, end = end, end + _size(tensor)
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _ordered(tensors: Tensors) -> list[str]:
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise UserError(f"{name} is {tensor.dtype}, which no checkpoint can hold", ExitCode.CHECKPOINT_IO)
    return sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))


def _views(flat: Tensor, begin: int, tensors: Tensors) -> Iterator[Tensor]:
    """Each tensor's place in the memory, as a tensor of its shape and type."""
    for name in _ordered(tensors):
        tensor = tensors[name]
        end = begin + _size(tensor)
        yield flat[begin:end].view(tensor.dtype).view(tensor.shape)
        begin = end


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
