"""How the nodes of a launch find each other."""

from dataclasses import dataclass, fields, replace

from dist_train.errors import UserError

from .host import Host

DEFAULT_PORT = 29500
"""torchrun's own, where several nodes are told nothing else."""
JOIN_TIMEOUT_S = 600.0
"""torchrun's own join_timeout."""


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """torchrun's flags for the rendezvous. On a single node: a port of the loopback interface, free or given."""

    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None
    rdzv_conf: str | None = None
    master_addr: str | None = None
    master_port: int | None = None
    local_addr: str | None = None

    @property
    def join_timeout_s(self) -> float:
        """Seconds to wait for a node that stays away: join_timeout in --rdzv-conf.

        Raises:
            UserError: when it is no number of seconds.
        """
        words = dict(word.strip().partition("=")[::2] for word in (self.rdzv_conf or "").split(","))
        given = words.get("join_timeout", f"{JOIN_TIMEOUT_S:g}")
        if not given.isdigit() or int(given) < 1:
            raise UserError(f"--rdzv-conf join_timeout={given}: not a whole number of seconds")
        return float(given)

    def of_attempt(self, attempt: int) -> "Rendezvous":
        """Each generation has a store, a port and an id of its own: nothing stale is met again."""
        port = self.master_port + attempt - 1 if self.master_port else self.master_port
        return replace(self, rdzv_id=f"{self.rdzv_id}-{attempt}" if self.rdzv_id else None, master_port=port)


def choose_rendezvous(flags: Rendezvous, host: Host, nodes: int, node: int | None) -> Rendezvous:
    """How the nodes of this launch find each other, from flags and SLURM.

    Raises:
        UserError: when there are several nodes and neither says how.
    """
    if nodes == 1:
        return Rendezvous(master_port=flags.master_port)
    place = host.place if host.place and host.place.nodes == nodes else None
    ours = Rendezvous(**{one.name: getattr(flags, one.name) for one in fields(Rendezvous)})
    assert ours.join_timeout_s  # refused before anything starts
    ours = replace(ours, rdzv_id=ours.rdzv_id or (f"{place.job}-{place.restarts}" if place else None))
    if flags.rdzv_endpoint or flags.rdzv_backend not in (None, "static"):
        return replace(ours, rdzv_backend=flags.rdzv_backend or "c10d")
    head = flags.master_addr or (place.head if place else None)
    if head is None or node is None:
        raise UserError(
            f"{nodes} nodes have to find each other: give each --node-rank and --master-addr (and --master-port), or "
            "all the same --rdzv-endpoint HOST:PORT and --rdzv-id; under SLURM neither is needed"
        )
    # A job's port is known to all nodes without asking, differs between jobs that share a node, and is below Linux's
    # ephemeral ports. A job that comes back takes another one: whatever held the last one may still be there.
    of_job = 10_000 + (place.job_number + 997 * place.restarts) * 8 % 20_000 if place else DEFAULT_PORT
    return replace(ours, rdzv_backend="static", master_addr=head, master_port=flags.master_port or of_job)
