"""Messages between the supervisor, the fork server and an agent: one JSON packet each. Standard library only."""

import contextlib
import json
import socket
from typing import Any

LARGEST_MESSAGE = 1 << 20
"""Bytes."""


def receive(channel: socket.socket) -> Any:
    """The next message; None when the other side is gone."""
    try:
        packet = channel.recv(LARGEST_MESSAGE)
    except OSError:
        return None
    return json.loads(packet) if packet else None


def send(channel: socket.socket, message: Any) -> None:
    """Drops a message for a peer that has gone."""
    with contextlib.suppress(OSError):
        channel.send(json.dumps(message).encode())
