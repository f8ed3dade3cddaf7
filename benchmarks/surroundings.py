"""The environment that both sides of a benchmark are started with."""

import os


def environment(**more: str) -> dict[str, str]:
    """Ours, with one thread a process, the loopback interface, and `more`.

    Python keeps its bytecode, as it does for a user: many containers set PYTHONDONTWRITEBYTECODE, with which each start
    compiles a checkout's modules anew, where a peer's lie in site-packages and were compiled when they were installed.
    """
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**ours, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}
