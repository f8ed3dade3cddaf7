"""`dist-train fingerprint`: do two runs end in the same bits?"""

import hashlib
import json
import sys
from pathlib import Path

import safetensors

from dist_train.checkpoint.manifest import DamagedCheckpoint
from dist_train.checkpoint.store import VerifiedCheckpoint, locate, read_checked
from dist_train.config.problems import printable
from dist_train.config.requests import FingerprintRequest, read_request
from dist_train.config.stdout import tell
from dist_train.errors import ExitCode, ResumeError, UserError

TENSOR_FILES = ("ema.safetensors", "model.safetensors", "optimizer.safetensors")


def fingerprint(found: VerifiedCheckpoint) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all model and optimizer tensors, sorted by name.

    Raises:
        UserError: (exit 4) when a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in TENSOR_FILES:
        if file in found.manifest["files"]:
            for name, dtype, shape, content in sorted(_tensors(found, file)):
                digest.update(json.dumps([file, name, dtype, shape]).encode())
                digest.update(content)
    return digest.hexdigest()


def _tensors(found: VerifiedCheckpoint, file: str) -> list[tuple[str, str, list[int], bytes]]:
    """(name, dtype, shape, bytes) of the tensors of a safetensors file."""
    try:
        entries = safetensors.deserialize(read_checked(found.path, file, found.manifest))
    except (safetensors.SafetensorError, OSError, DamagedCheckpoint) as error:
        reason = printable(" ".join(str(error).split()), 300)
        raise ResumeError(f"{found.path / file} cannot be read: {reason}") from None
    return [(name, entry["dtype"], list(entry["shape"]), bytes(entry["data"])) for name, entry in entries]


def main(request: FingerprintRequest) -> int:
    try:
        found = locate(Path(request.target), lambda line: print(line, file=sys.stderr))
        value = fingerprint(found)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    facts = {"fingerprint": value, "step": found.manifest["step"], "checkpoint": str(found.path)}
    tell(json.dumps(facts) if request.as_json else value)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(read_request(FingerprintRequest, sys.argv[1:])))
