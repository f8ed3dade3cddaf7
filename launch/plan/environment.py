"""The environment of the ranks: our defaults, which the user's variables override, and what the plan decided."""

from dist_train.errors import UserError

from .host import Host
from .requirements import Requirements

WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS adds in one order; the first is our default."""


def environment(requirements: Requirements, nodes: int, device: str, threads: int, host: Host) -> dict[str, str]:
    """What is added to the environment of every rank, and of the process that they are forked from."""
    mine = {
        # MKL and OpenBLAS follow it. Variables of their own would beat the user's OMP_NUM_THREADS.
        "OMP_NUM_THREADS": str(threads),
        # torch's own default: a failed collective ends the rank. torchrun's is 1, which aborts the communicators first
        # and may hang in that (pytorch/pytorch#110723).
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    }
    decided = {}
    if host.place:
        decided["DIST_TRAIN_JOB"] = host.place.job  # rank 0's lease holds it, for a second run of the directory to name
    if requirements.environment_wins:
        mine, decided = {**mine, **decided}, {}
    else:
        mine |= _of_our_programs(requirements, nodes, device, host)
        if device == "gpu":
            decided["DIST_TRAIN_GPUS"] = str(host.gpus)  # for a rank whose torch sees none of them
        elif host.gpus:
            decided["CUDA_VISIBLE_DEVICES"] = ""
    return {**{name: value for name, value in mine.items() if name not in host.variables}, **decided}


def _of_our_programs(requirements: Requirements, nodes: int, device: str, host: Host) -> dict[str, str]:
    """Defaults for our own programs. Somebody else's program may reach other hosts by itself: it gets torchrun's."""
    # On one node, nothing listens where others could reach it.
    mine = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if nodes == 1 else {}
    if device == "gpu" and requirements.exact:
        mine["CUBLAS_WORKSPACE_CONFIG"] = WORKSPACES[0]
        given = host.variables.get("CUBLAS_WORKSPACE_CONFIG", WORKSPACES[0])
        if given not in WORKSPACES:  # torch would say so at the first product of matrices
            raise UserError(
                f"CUBLAS_WORKSPACE_CONFIG is {given!r} in the environment, and exact needs {' or '.join(WORKSPACES)} "
                "on a GPU: unset it, or set exact: false"
            )
    return mine


def threads_of_a_rank(requirements: Requirements, device: str, ranks: int, host: Host) -> int:
    """The config's on a CPU; else what OMP_NUM_THREADS says, else a rank's share of the cores."""
    if requirements.threads and device == "cpu":
        return requirements.threads
    given = host.variables.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else max(1, host.cores // ranks)
