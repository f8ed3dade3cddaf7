"""`dist-train doctor` and `train --preflight`, under conditions made for real: limits, mounts, names, signals."""

import itertools
import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dist_train.commands.bench_ranks import ALL_PAIRS, rounds
from dist_train.config.replies import RanksMeasured, TorchFacts
from dist_train.processor import processor
from launch.doctor import disk, gpu, machine, network, speed

ROOT = Path(__file__).parents[4]
PATIENCE = 240
"""Seconds for anything to happen; a machine under load takes long to import torch."""
CONFIG = """
name: digits
data: {name: digits}
model: {name: cnn, width: 8}
optimizer: {name: sgd, lr: 0.1}
batch: {microbatches: 4, global_size: 64}
train: {duration: 1 epochs}
loader: {workers: 2}
"""
FILES_ONLY = "echo 'hosts: files' > nsswitch && mount --bind nsswitch /etc/nsswitch.conf"
"""Names come from /etc/hosts alone: no test asks a network."""
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount", "--uts"]
CAN_MOUNT = subprocess.run([*NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
mounting = pytest.mark.skipif(not CAN_MOUNT, reason="this machine lets nobody make a mount namespace")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "digits.yaml").write_text(CONFIG)
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch").mkdir()
    return tmp_path


def environment(folder):
    hidden = ("WANDB_", "NETRC", "CUDA_VISIBLE_DEVICES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "scratch"), "PYTHONPATH": str(ROOT)}
    return {**kept, **own, "CUDA_VISIBLE_DEVICES": ""}


def run(folder, command, *, code=0, **more):
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment(folder), **more},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout, done.stderr


def python(*words):
    return [sys.executable, *words]


def inside(*steps, command):
    """A command after steps of a shell in namespaces of its own."""
    return [*NAMESPACES, "sh", "-ec", "; ".join([*steps, f"exec {shlex.join(command)}"])]


# ---------------------------------------------------------------- before a training

PREFLIGHT = python(
    "-m", "dist_train.launch", "train", "digits.yaml", "--preflight", "--nproc-per-node", "2", "--run-dir", "disk/run"
)
WITHOUT_HEAD = [*PREFLIGHT, "--nnodes", "2", "--node-rank", "1", "--master-addr", "nowhere.invalid"]


@pytest.mark.parametrize(
    ("steps", "command", "words"),
    [
        (["mount -t tmpfs -o ro none disk"], PREFLIGHT, "/disk: Read-only file system; set run_root"),
        (
            ["mount -t tmpfs -o size=64k none disk", "dd if=/dev/zero of=disk/x bs=4k 2>/dev/null || true"],
            PREFLIGHT,
            "No space left on device; make room there",
        ),
        (["mount -t tmpfs -o nr_inodes=1 none disk"], PREFLIGHT, "No space left on device; make room there"),
        (
            ["mount -t tmpfs -o size=400k none disk", "mkdir -p disk/run/checkpoints/step-00000001"]
            + ["dd if=/dev/zero of=disk/run/checkpoints/step-00000001/model bs=250k count=1 2>/dev/null"],
            PREFLIGHT,
            "and a checkpoint is 256 kB; make room there",
        ),
        (
            ["mount -t tmpfs -o size=512k none /dev/shm"],
            PREFLIGHT,
            "free in /dev/shm: the loading processes hand batches over there",
        ),
        ([FILES_ONLY], WITHOUT_HEAD, "head node: nowhere.invalid resolves to nothing here; `getent hosts"),
    ],
    ids=["read-only", "full", "no inodes", "no room for the next checkpoint", "small /dev/shm", "unknown head"],
)
@mounting
def test_a_training_that_could_not_work_is_refused_in_one_line(steps, command, words, folder):
    (folder / "disk").mkdir()
    out, said = run(folder, inside(*steps, command=command), code=2)
    assert out == "" and said.count("\n") == 1 and words in said
    assert said.startswith(f"✗ preflight on {socket.gethostname()}: ")
    assert list((folder / "disk").iterdir()) == []


def test_too_few_open_files_are_refused(folder):
    limited = ["sh", "-c", f"ulimit -n 30; exec {shlex.join(PREFLIGHT)}"]
    _, said = run(folder, limited, code=2)
    assert "open files: 30 at most, and each of 2 ranks needs 40; raise the hard limit of 30" in said
    softly = ["sh", "-c", f"ulimit -S -n 30; exec {shlex.join(PREFLIGHT)}"]
    assert "needs 40; ulimit -n 1024\n" in run(folder, softly, code=2)[1]


def test_a_port_that_is_taken_is_refused(folder):
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        _, said = run(folder, [*PREFLIGHT, "--master-port", str(port)], code=2)
    assert f"port: {port} cannot be opened: Address already in use; ss -ltnp" in said


def test_a_preflight_that_finds_nothing_says_and_leaves_nothing(folder):
    script = (
        "import sys\nfrom dataclasses import asdict\nfrom launch.commands.train import plan_training\n"
        "from launch.doctor.examine import preflight\nfrom launch.plan.flags import Flags\n"
        "planned = plan_training(('digits.yaml',), run_dir='run', resume=None, allow_change=(), "
        "**asdict(Flags()))\n"
        "preflight(planned.config, planned.plan)\nassert not {'torch', 'wandb', 'numpy'} & sys.modules.keys()\n"
    )
    before = sorted(folder.rglob("*"))
    assert run(folder, python("-c", script)) == ("", "")
    assert sorted(folder.rglob("*")) == before


# ---------------------------------------------------------------- single questions


def test_a_usual_disk_does_all_that_a_run_needs(tmp_path):
    found, clock = disk.run_directory(tmp_path / "runs" / "new")
    assert found.level == clock.level == "ok", (found, clock)
    assert list(tmp_path.iterdir()) == []


def test_room_is_judged_by_the_size_of_a_checkpoint(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert disk.room(tmp_path, each=free // 100, kept=3).level == "ok"
    assert disk.room(tmp_path, each=free // 3, kept=3).level == "warning"
    assert disk.room(tmp_path, each=free * 2, kept=3).level == "problem"


def test_open_files_of_this_process():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = machine.open_files_limit(world_size=100_000_000, backend="gloo", workers=0)
    assert found.level == "problem" or soft == resource.RLIM_INFINITY
    assert (found.facts["soft"], found.facts["hard"]) == (soft, hard)


@pytest.mark.parametrize(
    ("lines", "name", "bf16"),
    [
        ("model name\t: Big One\nflags\t\t: fpu avx512_bf16 amx_bf16", "Big One", ("amx_bf16", "avx512_bf16")),
        ("processor\t: 0\nFeatures\t: fp asimd bf16", "", ("bf16",)),
        ("model name\t: Old One\nflags\t\t: fpu sse2", "Old One", ()),
    ],
)
def test_a_processor_is_known_by_what_the_kernel_says_of_it(tmp_path, lines, name, bf16):
    (tmp_path / "cpuinfo").write_text(f"{lines}\n\n{lines}\n")
    assert processor(tmp_path / "cpuinfo") == (name, bf16)
    assert processor(tmp_path / "none") == ("", ())


def test_bf16_is_offered_where_it_could_be_used():
    offered = "train.precision=bf16" in machine.cpu(computes=True, precision="fp32").text
    assert offered == bool(processor().bf16)
    assert "train.precision" not in machine.cpu(computes=True, precision="bf16").text
    assert "train.precision" not in machine.cpu(computes=False, precision="fp32").text


def test_numa_nodes_are_read_as_the_kernel_lists_them(tmp_path):
    assert machine.numa(tmp_path).facts["nodes"] == {}
    for node, cpus in (("0", "0-31,64-95\n"), ("1", "32-63,96-127\n")):
        (tmp_path / f"sys/devices/system/node/node{node}").mkdir(parents=True)
        (tmp_path / f"sys/devices/system/node/node{node}/cpulist").write_text(cpus)
    assert machine.numa(tmp_path).text == "2 nodes (0: cores 0-31,64-95, 1: cores 32-63,96-127)"


@mounting
@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("", "warning stray resolves to nothing"),
        ("192.0.2.7 stray", "warning stray resolves to 192.0.2.7, which is no address of this machine"),
        ("127.0.1.1 stray", "ok stray is 127.0.1.1 (loopback: enough for one node)"),
    ],
)
def test_the_name_of_this_machine(hosts, words, folder):
    script = "from launch.doctor.network import own_name as n; print(n().level, n().text)"
    steps = ["hostname stray", FILES_ONLY, f"echo '{hosts}' > hosts", "mount --bind hosts /etc/hosts"]
    assert run(folder, inside(*steps, command=python("-c", script)))[0].startswith(words)


def test_a_free_port_is_free():
    assert network.port().level == "ok"


def test_credentials_are_found_and_never_shown(folder):
    secret = "0123456789abcdef" * 2 + "01234567"
    script = (
        "import sys\nfrom launch.doctor import software\nfrom launch.doctor.examine import standard_config\n"
        "config = standard_config()\nwandb = config.tracking.wandb.model_copy(update={'mode': sys.argv[1]})\n"
        "config = config.model_copy(update={'tracking': config.tracking.model_copy(update={'wandb': wandb})})\n"
        "print(software.tracking(config))"
    )
    auto, online = (python("-c", script, mode) for mode in ("auto", "online"))
    assert run(folder, auto)[0] == "W&B: auto: no credentials, so runs are recorded offline\n"
    assert "recorded offline; wandb login, or tracking.wandb.mode=offline" in run(folder, online)[0]
    out, said = run(folder, online, WANDB_API_KEY=secret)
    assert "online: credentials found" in out and secret not in out + said
    assert run(folder, online, WANDB_MODE="disabled")[0] == "W&B: disabled\n"


# ---------------------------------------------------------------- NVIDIA's driver

PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021
GCC version:  gcc version 9.4.0 (Ubuntu 9.4.0-1ubuntu1~20.04.1)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder@host)  Sun Jul 27
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
TORCH = {"torch": "2.14.1+cu130", "cuda": "13.0", "gpus": []}


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "470.82.01"), (OPEN, "580.65.06"), ("", None)])
def test_the_version_of_the_driver(text, version, tmp_path):
    assert gpu.driver_version(tmp_path) is None
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert gpu.driver_version(tmp_path) == version


def test_cards_on_the_bus(tmp_path):
    devices = {"a": ("0x10de", "0x030200"), "b": ("0x10de", "0x040300"), "c": ("0x8086", "0x030000")}
    for name, (vendor, kind) in devices.items():  # a GPU, its sound device, another maker's GPU
        (tmp_path / "sys/bus/pci/devices" / name).mkdir(parents=True)
        (tmp_path / "sys/bus/pci/devices" / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / "sys/bus/pci/devices" / name / "class").write_text(f"{kind}\n")
    assert gpu.cards(tmp_path) == 1


@pytest.mark.parametrize(
    ("torch", "driver", "cards", "gpus", "level", "words"),
    [
        (TORCH, None, 0, 0, "ok", "no NVIDIA card or driver here"),
        (TORCH, None, 1, 0, "problem", "no driver is loaded for it"),
        (TORCH, "535.129.03", 1, 1, "problem", "which needs 580 or newer, and so sees no GPU; update the driver, or "),
        (TORCH, "535.129.03", 1, 1, "problem", "a torch that is built for CUDA 12"),
        (TORCH, "390.157", 1, 1, "problem", "a torch that is built for an older CUDA"),
        (TORCH, "580.65.06", 1, 0, "ok", "CUDA_VISIBLE_DEVICES leaves out all GPUs"),
        ({**TORCH, "why_no_gpu": "busy"}, "580.65.06", 1, 1, "problem", "torch sees no GPU: busy; does nvidia-smi"),
        ({**TORCH, "gpus": ["H100"]}, "535.129.03", 1, 1, "ok", "535.129.03"),  # by a cuda-compat package
        ({**TORCH, "cuda": None}, "580.65.06", 1, 1, "problem", "a build without CUDA"),
    ],
)
def test_the_driver_against_torch(torch, driver, cards, gpus, level, words):
    found = gpu.check_driver(TorchFacts(**torch), driver=driver, cards=cards, gpus=gpus)
    assert found.level == level and words in str(found)


# ---------------------------------------------------------------- who is slow


def test_an_outlier_is_far_below_the_median_of_all_others():
    assert speed.outliers({0: 10.0, 1: 9.0, 2: 11.0, 3: 10.0}, 0.5) == {}
    assert speed.outliers({0: 10.0, 1: 4.0, 2: 11.0, 3: 10.0}, 0.5) == {1: 0.4}
    assert speed.outliers({0: 10.0, 1: 2.0}, 0.5) == {1: 0.2}
    assert speed.outliers({0: 10.0}, 0.5) == {}
    assert speed.outliers({0: 10.0, 1: 1.0, 2: 1.0, 3: 10.0, 4: 10.0}, 0.5) == {1: 0.1, 2: 0.1}
    assert speed.outliers({rank: 10.0**9 * (rank == 0) + 1 for rank in range(5)}, 0.5) == {}  # one is fast: no matter


def measured(**changes):
    ranks = len(changes.get("gflops", [0] * 4))
    pairs = {f"{a}-{b}": 2.0 for a, b in itertools.combinations(range(ranks), 2)}
    usual = {"world_size": ranks, "backend": "gloo", "device": "cpu", "gflops": [50.0] * ranks, "share": [1.0] * ranks}
    usual |= {"all_reduce_mb": 16, "all_reduce_gbs": 1.5, "pairs_gbs": pairs}
    pairs |= changes.pop("pairs", {})
    return RanksMeasured(**{**usual, **changes})


def said(found, topic):
    return next((f"{finding.level} {finding.text}" for finding in found if finding.topic == topic), None)


def test_ranks_and_pairs_are_named():
    def judged(cores=8, **changes):
        return speed.judge(measured(**changes), cores=cores, ranks_here=4)

    assert [finding.level for finding in judged()] == ["ok"] * 3
    found = judged(gflops=[50.0, 50.0, 20.0, 50.0])
    assert said(found, "computing") == "warning rank 2 computes at 40 % of the others' speed"
    found = judged(share=[1.0, 0.3, 1.0, 0.9])
    assert said(found, "computing") == "warning rank 1 gets 30 % of a core, the others 100 %"
    found = judged(pairs={"1-3": 0.2})
    assert said(found, "pairs") == "warning ranks 1 and 3 at 10 % of the others'"
    found = judged(pairs={"0-2": 0.2, "1-2": 0.2, "2-3": 0.1})
    assert said(found, "pairs") == "warning every exchange with rank 2 is slow, at 10 % of the others' or less"
    found = judged(share=[1.0, 1.0, 0.1, 1.0], pairs={"0-2": 0.2, "1-2": 0.2, "2-3": 0.1})
    assert said(found, "pairs").startswith("ok")  # rank 2 has been named
    found = judged(cores=2, share=[0.6, 0.2, 0.6, 0.6])
    assert "not compared: more ranks than cores" in said(found, "computing") and said(found, "pairs") is None
    found = judged(device="cuda", gflops=[600.0, 600.0, 480.0, 600.0], cores=2)
    assert said(found, "computing") == "warning rank 2 computes at 80 % of the others' speed"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8, 9, 12])
def test_every_pair_has_its_round_and_no_rank_is_in_two(world_size):
    found = rounds(world_size)
    for pairs in found:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks)) and all(low < high for low, high in pairs)
    every = sorted(pair for pairs in found for pair in pairs)
    if world_size <= ALL_PAIRS:
        assert every == list(itertools.combinations(range(world_size), 2))
    else:
        assert len(found) <= 3
        assert every == sorted(tuple(sorted((rank, (rank + 1) % world_size))) for rank in range(world_size))


# ---------------------------------------------------------------- all of it, with ranks

DOCTOR = python("-m", "dist_train.launch", "doctor", "digits.yaml", "--nproc-per-node", "2", "--json")


def topics(out):
    report = json.loads(out)
    return report, {finding["topic"]: finding for finding in report["findings"]}


def hold_back(scratch: Path, over: threading.Event) -> None:
    """Once the ranks compute, lets rank 1 run for some milliseconds in each half second only, by signals."""
    held = 0
    while not over.wait(0.005):
        stages = [json.loads(path.read_text()) for path in scratch.glob("dist-train-doctor-*/measured.json")]
        if not stages:
            continue
        if stages[0].get("stage") != "computing":
            break
        ranks = list(scratch.glob("dist-train-doctor-*/generations/1/ranks/1.json"))
        held = held or json.loads(ranks[0].read_text())["pid"]
        os.kill(held, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(held, signal.SIGCONT)


def test_a_rank_that_is_held_back_is_named_and_no_problem(folder):
    over = threading.Event()
    holding = threading.Thread(target=hold_back, args=(folder / "scratch", over))
    holding.start()
    try:
        out, _ = run(folder, DOCTOR)
    finally:
        over.set()
        holding.join()
    report, found = topics(out)
    assert report["ok"] and found["computing"]["level"] == "warning"
    assert found["computing"]["facts"]["slow_ranks"] == [1]
    assert "rank 1 gets " in found["computing"]["text"]
    assert found["versions"]["facts"]["torch"] and found["driver"]["facts"]["cuda"] == gpu.cuda_of_torch()
    assert found["all-reduce"]["facts"]["ranks"] == 2 and found["all-reduce"]["facts"]["gb_per_second"] > 0
    assert found["disk"]["facts"]["checkpoint"] > 0
    assert left(folder) == []


def left(folder):
    """What there is besides the test's own files, and the cache that any import of torch makes."""
    own = {"digits.yaml", "home", "scratch"}
    found = [*folder.iterdir(), *(folder / "scratch").iterdir()]
    return [path.name for path in found if path.name not in own and not path.name.startswith("torchinductor")]


@pytest.mark.long
def test_ranks_that_cannot_work_are_a_problem_and_their_logs_are_kept(folder):
    script = (
        "import json\nfrom dataclasses import asdict\nfrom pathlib import Path\nfrom launch.plan import host\n"
        "from launch.doctor import examine, ranks\n"
        "from launch.plan import make_plan\nfrom launch.plan.flags import Flags\n"
        "flags = Flags(nproc_per_node='2', standalone=True, start='exec')\n"
        "plan = make_plan(examine.standard_config(), flags, host.look({}), folder=Path(), program=(), arguments=(), "
        "resume=None)\nprint(json.dumps([asdict(found) for found in ranks.findings(plan, cores=2)]))"
    )
    limited = ["sh", "-c", f"ulimit -n 16; exec {shlex.join(python('-c', script))}"]
    (found,) = json.loads(run(folder, limited)[0])
    assert found["level"] == "problem" and found["facts"]["exit_code"] == 10
    assert "2 ranks failed while joining each other over gloo" in found["text"]
    logs = Path(found["advice"].rpartition(" ")[2])
    assert logs.is_dir() and logs.is_relative_to(folder / "scratch")
