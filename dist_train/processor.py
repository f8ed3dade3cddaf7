"""What this machine's processor can do. No torch here."""

from pathlib import Path
from typing import NamedTuple


class Processor(NamedTuple):
    """Its name, and those of its instructions that multiply matrices in bfloat16."""

    name: str
    bf16: tuple[str, ...]


def processor(info: Path = Path("/proc/cpuinfo")) -> Processor:
    """As the kernel describes the first core; empty where it does not."""
    facts: dict[str, str] = {}
    try:
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    # Of x86, and of Arm.
    can = set(facts.get("flags", facts.get("Features", "")).split())
    known = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in can]
    return Processor(name=facts.get("model name", ""), bf16=tuple(known))
