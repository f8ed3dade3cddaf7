"""The copy of a state that a save writes: memory shared with the writer, laid out as the files will be.

A file of tensors is what safetensors makes of them, to the byte: 8 bytes with the length of the header, the header in
JSON, the tensors one after another (https://huggingface.co/docs/safetensors, "Format").
"""

import ctypes
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from dist_train.errors import DiskError

Part = tuple[int, int]
"""Where a file lies in the memory: its first byte, and its length."""
Tensors = Mapping[str, Tensor]
_TABLE = """
uint64=U64 int64=I64 float64=F64 complex64=C64 float32=F32 uint32=U32 int32=I32 bfloat16=BF16 float16=F16 uint16=U16
int16=I16 float8_e5m2fnuz=F8_E5M2FNUZ float8_e4m3fnuz=F8_E4M3FNUZ float8_e8m0fnu=F8_E8M0 float8_e4m3fn=F8_E4M3
float8_e5m2=F8_E5M2 int8=I8 uint8=U8 bool=BOOL
"""
_NAMES: dict[torch.dtype, str] = {getattr(torch, pair.split("=")[0]): pair.split("=")[1] for pair in _TABLE.split()}
"""safetensors' names of the dtypes, in its order within a file: the widest first, so all are aligned."""
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


class Buffers:
    """Room for one copy, made by the first `take` and used again by all later ones.

    It is a memfd, so /dev/shm may be as small as containers make it. All of it is allocated before it is written to:
    a machine without the memory for it raises ENOMEM here, instead of sending SIGBUS later. A process that is given the
    descriptor can map it.

    Attributes:
        descriptor: that of the memory. The memory's size changes with the state's.
        memory: all of it.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("checkpoint")
        self.memory = memoryview(b"")
        self._pinned = False

    def take(self, files: Mapping[str, Tensors]) -> dict[str, Part]:
        """Copies the tensors of each file; returns where the files lie. The copy is complete on return.

        Raises:
            OSError: when there is no memory for it.
            UserError: (exit 14) when a tensor is of a type that safetensors has no name for.
        """
        ordered = {file: _ordered(tensors) for file, tensors in files.items()}
        headers = {file: safetensors_header(tensors) for file, tensors in files.items()}
        parts, end = {}, 0
        for file, tensors in ordered.items():
            length = len(headers[file]) + sum(tensor.nbytes for tensor in tensors.values())
            parts[file] = (end, length)
            end += -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        on_gpu = any(tensor.is_cuda for tensors in files.values() for tensor in tensors.values())
        if end > len(self.memory):
            self._grow(end, pinned=on_gpu)
        flat = torch.frombuffer(self.memory, dtype=torch.uint8)
        for file, tensors in ordered.items():
            begin = parts[file][0] + len(headers[file])
            self.memory[parts[file][0] : begin] = headers[file]
            for tensor in tensors.values():
                place = flat[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                place.copy_(tensor.detach(), non_blocking=True)
                begin += tensor.nbytes
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return parts

    def close(self) -> None:
        """Gives the memory back; `take` must not be called again.

        Page-locked memory goes back when the process ends: unlocking waits for all work of the GPU, which after a
        failure may never end.
        """
        if not self._pinned:
            self._release()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _grow(self, size: int, pinned: bool) -> None:
        self._release()
        os.posix_fallocate(self.descriptor, 0, size)
        # Populated: else the first copy would meet a page fault every 4 KiB.
        self.memory = memoryview(mmap.mmap(self.descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE))
        if pinned:
            self._pin()

    def _pin(self) -> None:
        """The GPU fills page-locked memory at the bus's full speed (CUDA C++ Best Practices Guide, 10.1.1). Where the
        system allows no more locked pages, the memory stays as it is, which is slower and as correct."""
        self._pinned = int(torch.cuda.cudart().cudaHostRegister(self._address(), len(self.memory), 0)) == 0
        if not self._pinned:
            forget_cuda_error()

    def _address(self) -> int:
        return torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()

    def _release(self) -> None:
        """To be called between two saves, when the GPU no longer uses the memory."""
        if self._pinned and int(torch.cuda.cudart().cudaHostUnregister(self._address())):
            forget_cuda_error()
        self._pinned, self.memory = False, memoryview(b"")


def forget_cuda_error() -> None:
    """The runtime keeps the error of a failed call until it is asked for it. The next launch of a kernel would ask, and
    raise the error as its own. torch does not offer the call, but has the runtime loaded."""
    ask = getattr(ctypes.CDLL(None), "cudaGetLastError", None)
    if ask is not None:
        ask()
    else:  # a build with the runtime inside
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")


def safetensors_header(tensors: Tensors) -> bytes:
    """The header of a file that holds `tensors`; its length is a multiple of 8."""
    entries, end = {}, 0
    for name, tensor in _ordered(tensors).items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _ordered(tensors: Tensors) -> Tensors:
    """The tensors in the order in which safetensors puts them into a file."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise DiskError(f"{name} is {tensor.dtype}, which no checkpoint can hold")
    return dict(sorted(tensors.items(), key=lambda item: (_ORDER[item[1].dtype], item[0])))
