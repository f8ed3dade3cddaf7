"""The supervisor's hold on the relay (main.py), through which the output of one generation goes on this node."""

import contextlib
import secrets
import socket
import subprocess

from .. import children, console
from .request import RelayRequest, Shown

END_TIMEOUT_S = 10.0
"""For the relay to end once it is told to; its own limits are shorter."""


class OutputRelay:
    """Begins with the generation; `finish` when its processes are gone, before anything is said about them."""

    def __init__(self, shown: Shown, nodes: int, log_size: int) -> None:
        self.address = f"dist-train-{secrets.token_hex(16)}"
        """Of a socket in Linux's abstract namespace: there is no file to leave behind, and no path to be too long."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"\0{self.address}")
            listener.listen(4096)
            request = RelayRequest(listener=listener.fileno(), shown=shown, nodes=nodes, limit=log_size)
            self._process, self._stdin = children.start("relay.main", request, "-ESs", files=[listener.fileno()])
        self.pid = self._process.pid

    def say(self, text: str) -> None:
        """A message of the launcher's own while ranks may print: it gets a line of its own, above a progress bar."""
        try:
            self._stdin.write(f"{text}\n".encode())
            self._stdin.flush()
        except OSError:  # the relay is gone
            console.say(text)

    def finish(self) -> None:
        """Waits until all output is in the logs, and on the console if it takes it."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
