"""Ports and host names that the ranks need to find each other."""

import os
import socket
import threading

from ..plan import LaunchPlan, host
from .finding import Finding, ok, problem, warning

_RESOLVE_TIMEOUT_S = 5.0
"""For one name: a resolver that is down answers late or never."""


def port(plan: LaunchPlan | None = None) -> Finding:
    """Whether the port of the rendezvous is free: the given one, or any."""
    if plan is None or (given := plan.rendezvous.master_port) is None:
        try:
            return ok("port", f"free ones on loopback, such as {host.free_port()}")
        except OSError as error:
            text = f"none can be opened on loopback: {os.strerror(error.errno or 0)}"
            return problem("port", text, "is the interface lo up? (ip link)")
    if plan.nodes > 1 and plan.node != 0:
        return ok("port", f"{given}, which node 0 will open", port=given)
    try:
        socket.create_server(("127.0.0.1" if plan.nodes == 1 else "", given)).close()
    except OSError as error:
        advice = f"ss -ltnp 'sport = :{given}' names its owner; give another --master-port"
        return problem("port", f"{given} cannot be opened: {os.strerror(error.errno or 0)}", advice)
    return ok("port", f"{given} is free", port=given)


def own_name() -> Finding:
    """Whether this machine's name resolves to this machine. A single node does not need it: it stays on loopback."""
    name = socket.gethostname()
    addresses = addresses_of(name)
    facts = {"name": name, "addresses": addresses}
    if not addresses:
        text = f"{name} resolves to nothing: a run on one node uses loopback, one on several will not start"
        return warning("host name", text, "add it to /etc/hosts", **facts)
    strange = [address for address in addresses if not _is_here(address)]
    if strange:
        text = f"{name} resolves to {', '.join(strange)}, which is no address of this machine"
        return warning("host name", text, "correct /etc/hosts or DNS before a run on several nodes", **facts)
    loopback = all(address.startswith("127.") or address == "::1" for address in addresses)
    note = " (loopback: enough for one node)" if loopback else ""
    return ok("host name", f"{name} is {', '.join(addresses)}{note}", **facts)


def head_name(plan: LaunchPlan) -> Finding | None:
    """Whether this node can resolve the name of node 0; None on a single node."""
    meet = plan.rendezvous
    head = meet.master_addr or (meet.rdzv_endpoint or "").rpartition(":")[0].strip("[]")
    if plan.nodes == 1 or not head:
        return None
    addresses = addresses_of(head)
    if addresses:
        return ok("head node", f"{head} is {', '.join(addresses)}", addresses=addresses)
    advice = f"`getent hosts {head}` must answer on every node: add it to /etc/hosts or give an address"
    return problem("head node", f"{head} resolves to nothing here", advice)


def addresses_of(name: str) -> list[str]:
    """Its addresses; empty if there are none, or no answer within a few seconds."""
    found: list[str] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    asking = threading.Thread(target=ask, daemon=True)  # getaddrinfo has no time limit of its own
    asking.start()
    asking.join(_RESOLVE_TIMEOUT_S)
    return list(found)


def _is_here(address: str) -> bool:
    """Whether it is an address of this machine, which is one that can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
