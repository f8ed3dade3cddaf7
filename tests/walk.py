"""Follows one thing through the code while it runs: `python -m tests.walk [CHECKOUT]`.

A reader who follows a plan, a batch, a save or a stop signal reads each function of ours where it is first called. For
each of the four it prints how many functions that are (stops), in how many files (rooms), and how often the next one
stands in a file that the reader had left before (returns). All run on one rank in this process.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

WALKS = ("plan", "batch", "save", "stop")
PROGRAM = """
import json, os, signal, sys
walk, root = sys.argv[1:3]
trail, seen, depth = [], set(), [0]
OF = {"batch": ("loop.py", "train_step"), "save": ("checkpoint/", "save"), "stop": ("stop.py", "")}

def follow(frame, event, argument):
    code = frame.f_code
    is_function = code.co_flags & 1 and not code.co_name.startswith("<")  # and no class body, no comprehension
    if event != "call" or not code.co_filename.startswith(root) or not is_function:
        return
    place = code.co_filename[len(root) + 1:].replace("dist_train/launch/", "launch/")
    if place.startswith(("dist_train/", "launch/")) and (place, code.co_qualname) not in seen:
        seen.add((place, code.co_qualname))
        trail.append(place)

def only_inside(name, function):
    def traced(*arguments, **named):
        if trail and name != "stop":
            return function(*arguments, **named)
        sys.setprofile(follow)
        follow(type("F", (), {"f_code": function.__code__}), "call", None)
        try:
            return function(*arguments, **named)
        finally:
            if name != "stop":
                sys.setprofile(None)
    return traced

sys.path.insert(0, root)
if walk == "plan":
    from launch.cli import main
    open("program.py", "w").write("print('here')")
    sys.argv = ["dist-train", "run", "--nproc-per-node", "1", "--start", "exec", "program.py"]
    sys.setprofile(follow)
else:
    from dist_train import loop, worker
    from dist_train.control import stop
    sys.argv = ["dist_train", os.path.join(root, "configs/digits.yaml"), "train.duration=3 steps",
                "schedule.warmup=0 steps", "tracking.wandb.mode=disabled", "--run-dir", "run"]
    if walk == "batch":
        steps = loop.train_step
        calls = []
        def second(*arguments):
            calls.append(1)
            return (only_inside("batch", steps) if len(calls) == 2 else steps)(*arguments)
        loop.train_step = second
    elif walk == "save":
        import importlib
        new = os.path.exists(os.path.join(root, "dist_train/trainer.py"))
        module = importlib.import_module("dist_train.trainer" if new else "dist_train.run")
        owner = module.Trainer if new else module.Run
        owner.save = only_inside("save", owner.save)
    else:
        steps = loop.train_step
        def asked(*arguments):
            if not trail:
                sys.setprofile(follow)
                os.kill(os.getpid(), signal.SIGTERM)
            return steps(*arguments)
        loop.train_step = asked
    def main():
        import runpy
        runpy.run_module("dist_train", run_name="__main__", alter_sys=True)
try:
    main()
except SystemExit:
    pass
sys.setprofile(None)
json.dump(trail, open("trail.json", "w"))
os._exit(0)
"""


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    for walk in WALKS:
        trail = _trail(walk, root)
        print(f"{walk:<6} {len(trail):>4} stops {len(set(trail)):>4} rooms {_returns(trail):>4} returns")


def _trail(walk: str, root: Path) -> list[str]:
    """The file of each function, in the order in which they are first called."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, walk, str(root)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        try:
            return json.loads((Path(folder) / "trail.json").read_text())
        except FileNotFoundError:
            raise SystemExit(done.stdout + done.stderr) from None


def _returns(trail: list[str]) -> int:
    left: set[str] = set()
    returns = 0
    for before, now in zip(trail, trail[1:], strict=False):
        if now != before:
            left.add(before)
            returns += now in left
    return returns


if __name__ == "__main__":
    main()
