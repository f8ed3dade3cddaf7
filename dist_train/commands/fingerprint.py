"""`python -m dist_train.commands.fingerprint RUN_OR_CHECKPOINT`: do two runs end in the same bits?"""

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dist_train.checkpoint.store import Found, locate, read
from dist_train.config.errors import UserError
from dist_train.config.stdout import tell

TENSOR_FILES = ("ema.safetensors", "model.safetensors", "optimizer.safetensors")


def fingerprint(found: Found) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all model and optimizer tensors, in the order of their names."""
    digest = hashlib.sha256()
    for file in TENSOR_FILES:
        if file in found.manifest["files"]:
            for name, dtype, shape, content in sorted(_tensors(read(found.path, file, found.manifest))):
                digest.update(json.dumps([file, name, dtype, shape]).encode())
                digest.update(content)
    return digest.hexdigest()


def _tensors(content: bytes) -> Iterator[tuple[str, str, list[int], bytes]]:
    """(name, dtype, shape, bytes) of the tensors of a safetensors file: length of its header, JSON header, data."""
    (length,) = struct.unpack("<Q", content[:8])
    data = memoryview(content)[8 + length :]
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], entry["shape"], bytes(data[begin:end])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dist-train fingerprint", description=__doc__)
    parser.add_argument("target", type=Path, help="a run directory (its newest checkpoint) or a checkpoint")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        found = locate(arguments.target, lambda line: print(line, file=sys.stderr))
    except UserError as error:
        print(error, file=sys.stderr)
        return int(error.code)
    value = fingerprint(found)
    facts = {"fingerprint": value, "step": found.manifest["step"], "checkpoint": str(found.path)}
    tell(json.dumps(facts) if arguments.json else value)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
