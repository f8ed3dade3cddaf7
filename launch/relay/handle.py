"""The supervisor's hold on the relay (main.py), through which the output of one generation goes on this node."""

import contextlib
import json
import secrets
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from launch import console
from launch.relay.request import RelayRequest, Shown

HOME = Path(__file__).resolve().parents[2]
"""The folder that `launch` is imported from."""
PATIENCE = 10.0
"""Seconds in which a relay ends for certain, see its own limits."""


class OutputRelay:
    """Begins with the generation; `finish` when its processes are gone, before anything is said about them."""

    def __init__(self, shown: Shown, nodes: int, log_size: int) -> None:
        self.address = f"dist-train-{secrets.token_hex(16)}"
        """Of a socket in Linux's abstract namespace: there is no file to leave behind, and no path to be too long."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"\0{self.address}")
            listener.listen(4096)
            self._process = subprocess.Popen(
                [sys.executable, "-ESs", "-m", "launch.relay.main"],
                stdin=subprocess.PIPE,
                cwd=HOME,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C and Ctrl-Z are the supervisor's
            )
            request = RelayRequest(listener=listener.fileno(), shown=shown, nodes=nodes, limit=log_size)
        self.pid = self._process.pid
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            self._process.stdin.flush()

    def say(self, text: str) -> None:
        """A message of the launcher's own while ranks may print: it gets a line of its own, above a progress bar."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{text}\n".encode())
            self._process.stdin.flush()
        except OSError:  # the relay is gone
            console.say(text)

    def finish(self) -> None:
        """Waits until all output is in the logs, and on the console if it takes it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
