"""How many bytes a process has sent to each of its peers, by the kernel's own count for each TCP connection."""

import os
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_TCP_INFO, _BYTES_RECEIVED, _BYTES_SENT, _BYTES_RETRANS = 11, 128, 200, 208
"""The socket option, and where `tcpi_bytes_received`, `tcpi_bytes_sent` and `tcpi_bytes_retrans` are in the structure
that it gives (linux/tcp.h, since Linux 4.19)."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One end of it.

    Attributes:
        ends: our address and port, and the peer's.
        sent: bytes of data from here to there since it was opened. What was sent twice, because a busy receiver had
            answered late, counts once.
        received: and from there to here.
    """

    ends: tuple[tuple[str, int], tuple[str, int]]
    sent: int
    received: int


def connections() -> list[Connection]:
    """Those of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        if not os.path.realpath(f"/proc/self/fd/{name}").rpartition("/")[2].startswith("socket:"):
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:  # one that listens has no peer
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                ends = (one.getsockname()[:2], one.getpeername()[:2])
                told = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
                places = (_BYTES_SENT, _BYTES_RETRANS, _BYTES_RECEIVED)
                sent, again, received = (struct.unpack_from("Q", told, at)[0] for at in places)
                found.append(Connection(ends=ends, sent=sent - again, received=received))
    return found


def sent_by_link(of_ranks: Sequence[Sequence[Connection]]) -> dict[tuple[int, int], int]:
    """By sender and receiver the bytes that ranks have sent each other; not what a store sent or got.

    Args:
        of_ranks: each rank's `connections()`.
    """
    owner = {one.ends: rank for rank, held in enumerate(of_ranks) for one in held}
    links: dict[tuple[int, int], int] = {}
    for rank, held in enumerate(of_ranks):
        for one in held:
            if (peer := owner.get(one.ends[::-1])) is not None:
                links[rank, peer] = links.get((rank, peer), 0) + one.sent
    return links


def bytes_between(links: Mapping[tuple[int, int], int], per_node: int) -> int:
    """Those that went from one node to another."""
    return sum(sent for (rank, peer), sent in links.items() if rank // per_node != peer // per_node)
