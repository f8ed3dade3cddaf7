"""Commands, each as a user of torchrun writes it, and what their ranks run: rows of test_like_torchrun.py.

A script prints `OUT …` lines of what it sees, the same each time and under any launcher.
"""

from dataclasses import dataclass, field

SEES = """
import json, os, sys
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME"
names += " TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS"
seen = {name: os.environ.get(name) for name in names.split()}
print("OUT", json.dumps([sys.argv[1:], __name__, seen]), flush=True)
open(f"seen{os.environ['RANK']}", "w").write(json.dumps([sys.argv[1:], seen]))
"""
RUN_ID = "import os\nprint('OUT', os.environ['TORCHELASTIC_RUN_ID'], flush=True)\n"
NEW_ID = "import os, uuid\nprint('OUT', uuid.UUID(os.environ['TORCHELASTIC_RUN_ID']).version, flush=True)\n"
STREAMS = (
    "import os, sys, time\n"
    "rank = os.environ['RANK']\n"
    "print('OUT stdout of', rank, flush=True)\nprint('OUT stderr of', rank, file=sys.stderr, flush=True)\n"
)
MEETS = """
import os, torch.distributed as dist, torch
dist.init_process_group("gloo", init_method="env://")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
open(f"total{dist.get_rank()}", "w").write(f"{total.item()} of {dist.get_world_size()}")
dist.destroy_process_group()
"""
STORE = MEETS.replace('"gloo", init_method="env://"', '"gloo", store=store, rank=rank, world_size=size').replace(
    "\ndist.init",
    "\nrank, size = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE'))\n"
    "use = os.environ['TORCHELASTIC_USE_AGENT_STORE'] == 'True'\n"
    "at = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])\n"
    "store = dist.TCPStore(*at, size, is_master=rank == 0 and not use)\ndist.init",
    1,
)
FAILS_ONCE = """
import os, sys
turn = os.environ["TORCHELASTIC_RESTART_COUNT"]
open(f"turn{turn}", "w").write(os.environ["TORCHELASTIC_MAX_RESTARTS"] + os.environ["TORCHELASTIC_RUN_ID"])
sys.exit(3 if turn == "0" else 0)
"""
RECORDED = """
import json, os
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise ValueError("for the record")

if __name__ == "__main__":
    try:
        main()
    finally:
        told = json.load(open(os.environ["TORCHELASTIC_ERROR_FILE"]))["message"]
        open("told", "w").write(str(told["message"]))
"""
FOLDER = {"program/__main__.py": "import sibling\n" + SEES, "program/sibling.py": ""}
SHELL = 'echo "OUT $RANK of $WORLD_SIZE: $*" > "sh$RANK"; echo "OUT $*"'


@dataclass(frozen=True, kw_only=True)
class Row:
    """One command.

    Attributes:
        words: behind `torchrun` or `dist-train run`.
        files: by name; s.py has `script`.
        environment: beside the test's own.
        code: the exit code under torchrun.
        ours: ours, where it is another one.
        why: the two differ in exit code, or in what they show, on purpose.
        starts: ours that are tried.
        shown: whether `OUT` lines on the console are compared, as sets; which stream a line comes on is, too.
        streams_shown: ours, where they are others than torchrun's.
        nodes: how many such commands run at once, with {node} and {port} in their words filled in.
        torchrun: other words for torchrun, which would fail with these.
    """

    words: str
    script: str = SEES
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 0
    ours: int | None = None
    why: str = ""
    starts: tuple[str, ...] = ("preload",)
    shown: bool = True
    streams_shown: tuple[set[str], set[str]] | None = None
    nodes: int = 1
    torchrun: str | None = None


BY_KIND = "exit codes say the kind of end: 10 is the user's code, 2 is usage"
RANK0 = "the console shows rank 0; the others are in their logs"
BETTER = "torchrun's parser looks for its flags behind the program, too, where Python is older than 3.12"
ENDED = {"code": 1, "ours": 10, "why": BY_KIND}
USAGE = {"code": 2}
BOTH = ("preload", "exec")
OUT0, ERR0, OUT1, ERR1 = (f"OUT {stream} of {rank}" for rank in (0, 1) for stream in ("stdout", "stderr"))


def shows(words: str, out: set[str], err: set[str], **more: object) -> Row:
    """Two ranks that print on both streams."""
    return Row(words=f"--nproc-per-node 2 {words} s.py", script=STREAMS, streams_shown=(out, err), **more)  # type: ignore[arg-type]


ROWS = {
    # how many, and how they are told
    "one rank": Row(words="s.py", starts=BOTH),
    "two ranks": Row(words="--nproc-per-node 2 s.py a --b", shown=False, why=RANK0),
    "underscores": Row(words="--nproc_per_node=2 --max_restarts=1 s.py", shown=False, why=RANK0),
    "nproc cpu": Row(words="--nproc-per-node cpu s.py", shown=False, why=RANK0),
    "nproc auto": Row(words="--nproc-per-node auto s.py", shown=False, why=RANK0),
    "variables": Row(
        words="s.py",
        environment={"PET_NPROC_PER_NODE": "2", "PET_ROLE": "r", "PET_MAX_RESTARTS": "4"},
        shown=False,
        why=RANK0,
    ),
    "a flag beats its variable": Row(words="--nproc-per-node 1 s.py", environment={"PET_NPROC_PER_NODE": "2"}),
    "a variable that says no": Row(words="s.py", environment={"PET_MODULE": "0", "PET_STANDALONE": "0"}),
    "role": Row(words="--role trainer --standalone s.py", starts=BOTH),
    # abbreviations, and what is the program's
    "abbreviations": Row(
        words="--nproc 2 --stand --max 1 s.py",
        torchrun="--nproc-per-node 2 --standalone --max-restarts 1 s.py",
        shown=False,
        why="in Python 3.11 two spellings of one flag are two to argparse",
    ),
    "its own --log": Row(
        words="s.py --log a --n 3 --m=3 --r 1", torchrun="s.py -- --log a --n 3 --m=3 --r 1", why=BETTER
    ),
    "its own -m and -h": Row(words="s.py -m -h --help --nnodes 3 --standalone", starts=BOTH),
    "two dashes": Row(words="s.py -- --x -- y"),
    "two dashes before": Row(words="-- s.py -- --x"),
    "odd words": Row(words="s.py '' 'a b' '*' é"),
    # kinds of program
    "a module": Row(words="-m package.s a", files={"package/s.py": SEES}, starts=BOTH),
    "no python": Row(
        words="--no-python --nproc-per-node 2 sh -c '" + SHELL + "' x --log 1",
        torchrun="--no-python --nproc-per-node 2 -- sh -c '" + SHELL + "' x --log 1",
        shown=False,
        why=RANK0,
    ),
    "run path": Row(words="--run-path {here}/s.py a --b"),
    "run path beats no python": Row(words="--run-path --no-python {here}/s.py"),
    "a folder": Row(words="program a", files=FOLDER, starts=BOTH),
    "an absolute path": Row(words="{here}/s.py"),
    # where they meet
    "static": Row(
        words="--rdzv-backend static --master-addr 127.0.0.1 --master-port {port} --nproc-per-node 2 s.py", script=MEETS
    ),
    "c10d": Row(
        words="--rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-id x --nproc-per-node 2 s.py", script=MEETS
    ),
    "standalone": Row(words="--standalone --nproc-per-node 2 s.py", script=MEETS, starts=BOTH),
    "the agent's store": Row(words="--nproc-per-node 2 s.py", script=STORE),
    "two nodes, static": Row(
        words="--nnodes 2 --node-rank {node} --master-addr 127.0.0.1 --master-port {port} s.py", script=MEETS, nodes=2
    ),
    "two nodes, c10d": Row(
        words="--nnodes 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port} --rdzv-id x s.py", script=MEETS, nodes=2
    ),
    "an id": Row(words="--rdzv-id x --master-port {port} s.py", script=RUN_ID),
    "an id alone": Row(
        words="--rdzv-id x s.py",
        torchrun="--rdzv-id x --master-port {port} s.py",
        script=RUN_ID,
        why="torch 2.14 puts a new id in its place",
    ),
    "no id": Row(words="--master-port {port} s.py", script=RUN_ID),
    "a new id": Row(words="--standalone --rdzv-id x s.py", script=NEW_ID),
    "a range of nodes": Row(
        words="--nnodes 1:2 --rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-conf last_call_timeout=1 s.py",
        ours=2,
        shown=False,
        why="to change the size of a run, start it again",
    ),
    "a range of one": Row(words="--nnodes 1:1 s.py"),
    # ends
    "ends with 0": Row(words="s.py", script="import sys; sys.exit(0)", starts=BOTH),
    "ends with 1": Row(words="s.py", script="import sys; sys.exit(1)", **ENDED),
    "ends with 3": Row(
        words="--nproc-per-node 2 s.py",
        script="import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)",
        **ENDED,
    ),
    "ends with words": Row(words="s.py", script="import sys; sys.exit('OUT no more')", **ENDED),
    "raises": Row(words="s.py", script="raise ValueError('no')", **ENDED),
    "killed": Row(words="s.py", script="import os; os.kill(os.getpid(), 9)", **ENDED),
    "terminated": Row(words="s.py", script="import os, signal; os.kill(os.getpid(), signal.SIGTERM)", **ENDED),
    "leaves at once": Row(words="s.py", script="import os; print('OUT', flush=True); os._exit(0)"),
    "a failure is tried again": Row(
        words="--max-restarts 2 --rdzv-id x --master-port {port} s.py", script=FAILS_ONCE, starts=BOTH
    ),
    "no failure is tried more often": Row(
        words="--max-restarts 1 s.py",
        script="import os; open('t' + os.environ['TORCHELASTIC_RESTART_COUNT'], 'w'); raise SystemExit(1)",
        **ENDED,
    ),
    "on record": Row(words="s.py", script=RECORDED, **ENDED),
    # what is shown
    "tee 3": shows("--tee 3", {OUT0, OUT1}, {ERR0, ERR1}),
    "tee 1": shows("--tee 1", {OUT0, OUT1}, {ERR0}, why=RANK0),
    "tee of one": shows("--tee 1:2", {OUT0}, {ERR0, ERR1}, why=RANK0),
    "filter": shows("--local-ranks-filter 1", {OUT1}, {ERR1}),
    "filter and tee": shows("--local-ranks-filter 0 --tee 3", {OUT0}, {ERR0}),
    "redirects": shows("-r 3 --log-dir logs", set(), set()),
    "redirects and tee": shows("-r 3 -t 1:1", {OUT1}, set()),
    "redirected stdout": shows("--redirects 0:1,1:3", set(), {ERR0}),
    "duplicates": Row(words="--tee 3 --duplicate-stdout-filters a --duplicate-stderr-filters b s.py", shown=False),
    "logs specs": Row(words="--logs-specs default s.py"),
    "nothing but flags": Row(
        words="--monitor-interval 0.2 --start-method spawn --event-log-handler null --signals-to-handle SIGTERM,SIGINT "
        "--shutdown-timeout 5 --node-rank 0 --local-addr 127.0.0.1 --nnodes 1 s.py"
    ),
    # mistakes
    "an unknown flag": Row(words="--nope s.py", **USAGE),
    "no program": Row(words="--nproc-per-node 2", **USAGE),
    "a word for a number": Row(words="--max-restarts many s.py", **USAGE),
    "an unknown number of ranks": Row(words="--nproc-per-node many s.py", code=1, ours=2, why=BY_KIND),
    "an unknown plug-in": Row(words="--logs-specs mine s.py", code=1, ours=2, why=BY_KIND),
    "an unknown tee": Row(words="--tee 7 s.py", code=1, ours=2, why=BY_KIND),
    "a module that is no python": Row(words="-m --no-python s", code=1, ours=2, why=BY_KIND),
    "no such script": Row(words="nope.py", code=1, ours=2, why=BY_KIND),
    "no such module": Row(words="-m nope", **ENDED),
    "a folder without a main": Row(words=".", code=1, ours=2, why=BY_KIND),
}
