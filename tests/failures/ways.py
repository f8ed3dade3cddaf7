"""Ways to fail: what one rank of four does, and what must be said of it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Way:
    name: str
    """Of an act in script.py."""
    kind: str
    words: tuple[str, ...]
    """All of them are said."""
    code: int = 10
    rank: int = 0
    """Which one fails in the default suite."""
    default: bool = False
    """Whether it is in the default suite."""


WAYS = (
    Way(name="raise", kind="exception", words=("IndexError in your code", "> ", "return labels[index]"), rank=1),
    Way(name="raise-then-linger", kind="exception", words=("IndexError in your code",), rank=2, default=True),
    Way(name="exit-3", kind="exit", words=("ended with exit code 3",), rank=3, default=True),
    Way(name="exit-text", kind="exit", words=("ended with exit code 1", "bad label in birds.csv"), rank=1),
    Way(name="os-exit-7", kind="exit", words=("ended with exit code 7",), rank=2),
    Way(name="exit-0", kind="early", words=("left with exit code 0 while the others",), rank=3),
    Way(name="os-exit-0", kind="early", words=("left with exit code 0 while the others",), rank=0, default=True),
    Way(name="abort", kind="signal", words=("died of SIGABRT", "> ", "ACTS[WAY]()"), rank=1),
    Way(name="abort-in-thread", kind="signal", words=("died of SIGABRT",), rank=2),
    Way(name="segfault", kind="signal", words=("died of SIGSEGV", "> ", "script.py"), rank=0, default=True),
    Way(name="sigfpe", kind="signal", words=("died of SIGFPE", "> "), rank=2),
    Way(name="sigbus", kind="signal", words=("died of SIGBUS", "/dev/shm has"), rank=3),
    Way(name="sigill", kind="signal", words=("died of SIGILL", "> "), rank=1),
    Way(
        name="sigkill",
        kind="signal",
        words=("killed by SIGKILL", "not the OOM killer", "GB used"),
        rank=2,
        default=True,
    ),
    Way(name="import-error", kind="exception", words=("ModuleNotFoundError", "no_such_module_at_all"), rank=1),
    Way(name="syntax-error", kind="exception", words=("SyntaxError", "broken_part"), rank=3),
    Way(
        name="memory-error",
        kind="exception",
        code=12,
        words=("MemoryError", "315 MB (ulimit -v)"),
        rank=1,
        default=True,
    ),
    Way(name="recursion", kind="exception", words=("RecursionError", "> "), rank=2),
    Way(name="open-files", kind="exception", words=("(nofile) is 64", "ulimit -n"), rank=3, default=True),
    Way(name="no-space", kind="exception", words=("No space left on device", "make room"), rank=0),
    Way(name="port-taken", kind="exception", words=("Address already in use", "is taken"), rank=2),
    Way(name="assertion", kind="exception", words=("AssertionError in your code", "differ in number"), rank=3),
    Way(name="gpu-memory", kind="exception", code=12, words=("CUDA out of memory", "batch.microbatches"), rank=0),
    Way(name="torch-memory", kind="exception", code=12, words=("can't allocate memory", "GB used"), rank=1),
    Way(name="dataset", kind="exception", words=("IndexError in your code", "> ", "return labels[index]"), rank=2),
    Way(name="collate", kind="exception", words=("stack expects each tensor to be equal size",), rank=3),
    Way(
        name="worker-segfault",
        kind="exception",
        words=("lost a loading process", "Segmentation", "its stack:", "> "),
        rank=1,
        default=True,
    ),
    Way(name="worker-abort", kind="exception", words=("lost a loading process", "Aborted", "its stack:", "> "), rank=0),
    Way(
        name="worker-killed", kind="exception", words=("lost a loading process", "Killed", "not the OOM killer"), rank=2
    ),
    Way(name="worker-bus", kind="exception", words=("lost a loading process", "Bus error", "/dev/shm has"), rank=3),
    Way(name="gloo-raise", kind="exception", words=("IndexError in your code",), rank=3),
    Way(name="gloo-sigkill", kind="signal", words=("killed by SIGKILL",), rank=1),
    Way(
        name="mismatch",
        kind="mismatch",
        words=("called another collective than the others", " called all_reduce of float32 [400000] at "),
        rank=2,
        default=True,
    ),
)
