"""Messages between the supervisor, the fork server and an agent: one JSON packet each. Standard library only."""

import contextlib
import json
import os
import socket
from typing import Any

LARGEST_PACKET = 100_000
"""Bytes. Linux refuses packets above about 200 kB; a longer message goes through a memory file."""


def receive(channel: socket.socket) -> Any:
    """The next message; None when the other side is gone."""
    try:
        packet, files, _, _ = socket.recv_fds(channel, LARGEST_PACKET, 1)
        for file in files:
            with open(file, "rb") as message:
                packet = message.read()
    except OSError:
        return None
    return json.loads(packet) if packet else None


def send(channel: socket.socket, message: Any) -> None:
    """Sends a message. One for a peer that has gone is dropped."""
    packet = json.dumps(message).encode()
    if len(packet) <= LARGEST_PACKET:
        with contextlib.suppress(ConnectionError):
            channel.send(packet)
        return
    with open(os.memfd_create("message"), "w+b") as file:
        file.write(packet)
        file.seek(0)
        with contextlib.suppress(ConnectionError):
            socket.send_fds(channel, [b"."], [file.fileno()])
