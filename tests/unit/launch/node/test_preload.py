"""The fork server's end of the line, and what it refuses to fork from. A real one, with real imports."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.children import ROOT as HOME
from launch.node.channel import receive, send
from launch.node.fork_server import open_files

DRIVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* As the driver's: it opens a device, and says that there is none. */
int cuInit(unsigned flags) {
    int calls = open(getenv("STAND_IN_CALLS"), O_WRONLY | O_CREAT | O_APPEND, 0666);
    dprintf(calls, "%d\n", getpid());
    close(calls);
    open(getenv("STAND_IN_DEVICE"), O_RDONLY);
    return 100;
}
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, void *status) {
    *found = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name);
    return *found ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """A folder with a libcuda.so.1 that notes who calls cuInit."""
    if shutil.which("cc") is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(DRIVER)
    library = ["-shared", "-fPIC", "-o", "libcuda.so.1", "cuda.c", "-ldl"]
    subprocess.run(["cc", *library], cwd=folder, check=True, capture_output=True)
    (folder / "nvidia0").touch()
    return folder


def environment(driver: Path, calls: Path) -> dict[str, str]:
    more = {"STAND_IN_CALLS": str(calls), "STAND_IN_DEVICE": str(driver / "nvidia0")}
    more |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)}
    return {**os.environ, "LD_LIBRARY_PATH": str(driver), **more}


def who_called(calls: Path) -> set[int]:
    return {int(line) for line in calls.read_text().split()} if calls.exists() else set()


def begin(
    folder: Path, modules: list[str], given: dict[str, str], devices: str
) -> tuple[subprocess.Popen, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(120)
    server = [sys.executable, str(HOME / "launch/node/fork_server.py")]
    words = [*server, str(theirs.fileno()), str(os.getpid()), str(HOME), "launch"]
    server = subprocess.Popen(words, pass_fds=(theirs.fileno(),), env=given)
    theirs.close()
    order = {"environment": {}, "cwd": str(folder), "path": str(folder), "log": str(folder / "log"), "devices": devices}
    send(ours, {**order, "modules": modules, "strict": True})
    send(ours, {})  # for an agent, which will not know what to do, and end
    return server, ours


def refusal_of(folder: Path, modules: list[str], given: dict[str, str], devices: str) -> str | None:
    """What it says of these modules, once they are imported; None where ranks may be forked."""
    server, ours = begin(folder, modules, given, devices)
    try:
        said = [receive(ours), receive(ours)]
        while "started" not in said[0] and "started" not in said[-1]:
            said.append(receive(ours))
        return next((message["refused"] for message in said if "refused" in message), None)
    finally:
        server.kill()
        server.wait()
        ours.close()


def test_nothing_that_a_training_preloads_calls_the_driver(driver, tmp_path):
    """The stand-in is seen: torch asks it as soon as somebody wants to know of GPUs."""
    calls = tmp_path / "calls"
    given = environment(driver, calls)
    modules = ["dist_train.worker", "dist_train.data.fetch"]
    assert refusal_of(tmp_path, modules, given, str(driver / "nvidia")) is None
    assert who_called(calls) == set()
    (tmp_path / "looks.py").write_text("import torch\ntorch.cuda.is_available()\n")
    refused = refusal_of(tmp_path, ["looks"], given, str(driver / "nvidia"))
    assert len(who_called(calls)) == 1
    assert refused == f"what was imported has opened {driver / 'nvidia0'}, and the GPU's driver does not survive a fork"


def test_files_are_known_by_how_their_path_begins(driver):
    with open(driver / "nvidia0") as kept:
        assert [*open_files(str(driver / "nvidia"))] == [kept.name]
        assert [*open_files("/dev/nvidia-none")] == []
    assert [*open_files(str(driver / "nvidia"))] == []
