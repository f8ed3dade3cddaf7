"""A program of somebody who knows nothing of us: `ending_script.py FOLDER GUILTY END PEERS TORCH THING …`.

It opens every THING in its globals and closes none, then ends as END says: what the interpreter does with them at its
end decides what is on disk. Rank GUILTY ends in that way; the others do what PEERS says. Nothing that it writes depends
on time or chance.
"""

# ruff: noqa: SIM115 - that nothing is closed is what it is there for

import atexit
import csv
import ctypes
import dbm.dumb
import gzip
import io
import json
import multiprocessing
import os
import pickle
import shelve
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import weakref
import zipfile

FOLDER, GUILTY, END, PEERS, TORCH, *THINGS = sys.argv[1:]
RANK = int(os.environ["RANK"])
os.chdir(os.path.join(FOLDER, f"rank{RANK}"))
if TORCH != "none":
    import torch
if TORCH == "gloo":
    torch.distributed.init_process_group("gloo")


# ---------------------------------------------------------------- what is open


def note(name, text):
    """Written at once, whatever comes then."""
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def text():
    file = open("text.txt", "w")
    file.write("a line\n" * 300)
    return file


def rows():
    file = open("rows.csv", "w", newline="")
    writer = csv.writer(file)
    writer.writerows([[number, number**2] for number in range(200)])
    return writer


def packed():
    file = gzip.GzipFile("packed.gz", "wb", mtime=0)
    file.write(b"some bytes " * 500)
    return file


def packed_text():
    return io.TextIOWrapper(packed_into("packed_text.gz"), write_through=False)


def packed_into(name):
    file = gzip.GzipFile(name, "wb", mtime=0)
    file.write(b"bytes before the text")
    return file


def archive():
    file = zipfile.ZipFile("archive.zip", "w")
    file.writestr(zipfile.ZipInfo("member"), "content " * 50)
    return file


class Tee:
    def __init__(self, *files):
        self.files = files

    def write(self, words):
        for file in self.files:
            file.write(words)
        return len(words)

    def flush(self):
        for file in self.files:
            file.flush()


def tee():
    sys.stdout = Tee(sys.__stdout__, open("tee.txt", "w"))
    print("to both")


def tee_of_errors():
    sys.stderr = Tee(sys.__stderr__, open("tee_of_errors.txt", "w"))


def generator():
    def lines(file):
        try:
            yield
        finally:
            file.write("the generator has ended\n")

    suspended = lines(open("generator.txt", "w"))
    next(suspended)
    return suspended


def database():
    connection = sqlite3.connect("database.db")
    connection.execute("pragma journal_mode = memory")  # a file of it would begin with a random number
    connection.execute("create table kept (number)")
    connection.execute("insert into kept values (1)")
    connection.commit()
    connection.execute("insert into kept values (2)")
    return connection


def shelf():
    found = shelve.Shelf(dbm.dumb.open("shelf", "n"), writeback=True)
    found["kept"] = [1]
    found["kept"].append(2)
    return found


class Closing:
    def __init__(self):
        self.file = open("closing.txt", "w")
        self.me = self

    def __del__(self):
        self.file.write("closed\n")


def cycle():
    return Closing()


def finalizer():
    def end(file):
        file.write("finalized\n")

    owner = Closing.__new__(Closing)
    owner.file = io.StringIO()
    weakref.finalize(owner, end, open("finalizer.txt", "w"))
    return owner


def pipe():
    child = subprocess.Popen(["sh", "-c", "cat > pipe.txt"], stdin=subprocess.PIPE)
    child.stdin.write(b"for the child")
    return child


def connection():
    ours, theirs = socket.socketpair()
    subprocess.Popen(["sh", "-c", "cat > connection.txt"], stdin=theirs)
    file = ours.makefile("w")
    file.write("over a socket\n")
    return ours, file


def hooked():
    file = open("hooked.txt", "w")

    def hook(kind, error, trace):
        file.write("".join(traceback.format_exception(kind, error, trace)))

    sys.excepthook = hook


def signals():
    file = open("signals.txt", "w")
    file.write("a handler keeps me\n")
    signal.signal(signal.SIGUSR2, lambda *_: file.write("never"))


def c_stream():
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(b"c_stream.txt", b"w")
    libc.fputs(b"from C\n", ctypes.c_void_p(file))
    return file


def late_thread():
    def work():
        time.sleep(0.3)
        with open("late_thread.pkl", "wb") as file:
            pickle.dump(Point(), file)

    threading.Thread(target=work).start()


def at_exit():
    file = open("at_exit.txt", "w")

    def end():
        file.write("at exit\n")
        with open("at_exit.pkl", "wb") as file_of_points:
            pickle.dump(Point(), file_of_points)

    atexit.register(end)


def slow_exit():
    def end():
        for number in range(4):
            time.sleep(1)
            note("slow_exit.txt", number)

    atexit.register(end)


def main_module():
    note("main_module.json", json.dumps([__file__, str(__spec__), __name__, type(__loader__).__name__, sys.argv[0]]))


def hdf5():
    import h5py

    file = h5py.File("hdf5.h5", "w", track_order=True)
    file["kept"] = list(range(10))
    return file


class Point:
    where = 3


OPEN = [globals()[name]() for name in THINGS]


# ---------------------------------------------------------------- how it ends


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_child(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        work()
    else:
        os.waitpid(child, 0)


def in_process():
    multiprocessing.get_context("fork").Process(target=note, args=("child.txt", "x")).start()


def fail():
    raise ValueError("wrong")


def interrupt():
    raise KeyboardInterrupt


class Leaving(SystemExit):
    pass


def leave():
    raise Leaving(4)


def deep():
    return deep()


def chained():
    try:
        fail()
    except ValueError as error:
        raise RuntimeError("another") from error


def finally_slow():
    try:
        fail()
    finally:
        for number in range(4):
            time.sleep(1)
            note("finally_slow.txt", number)


def broken_hook():
    def hook(*_):
        raise TypeError("in the hook")

    sys.excepthook = hook
    fail()


def thread_hook():
    threading.excepthook = lambda given: note("thread_hook.txt", given.exc_type.__name__)
    in_thread(fail)


def kill(number):
    return lambda: os.kill(os.getpid(), number)


ENDS = {
    "return": lambda: None,
    "exit": sys.exit,
    "exit-3": lambda: sys.exit(3),
    "exit-text": lambda: sys.exit("a text"),
    "exit-subclass": leave,
    "exit-at-once": lambda: os._exit(3),
    "exception": fail,
    "chained": chained,
    "recursion": deep,
    "interrupt": interrupt,
    "finally-slow": finally_slow,
    "broken-hook": broken_hook,
    "kill": kill(signal.SIGKILL),
    "terminate": kill(signal.SIGTERM),
    "abort": kill(signal.SIGABRT),
    "user-signal": kill(signal.SIGUSR1),
    "exception-in-thread": lambda: in_thread(fail),
    "exit-in-thread": lambda: in_thread(sys.exit),
    "thread-hook": thread_hook,
    "kill-in-thread": lambda: in_thread(kill(signal.SIGKILL)),
    "exception-at-exit": lambda: atexit.register(fail),
    "exit-at-exit": lambda: atexit.register(sys.exit, 5),
    "kill-at-exit": lambda: atexit.register(kill(signal.SIGKILL)),
    "exception-in-fork": lambda: in_child(fail),
    "exit-in-fork": lambda: in_child(sys.exit),
    "at-once-in-fork": lambda: in_child(lambda: os._exit(0)),
    "multiprocessing": in_process,
    "another-program": lambda: os.execvp("sh", ["sh", "-c", "echo it > another.txt"]),
}
for thread in set(threading.enumerate()) - {threading.main_thread()} if PEERS != "return" else ():
    if not thread.daemon:
        thread.join()  # else how far it has come is left to chance


def save(*_):
    for number in range(5):
        time.sleep(1)
        note("save.txt", number)
    sys.exit(1)


IS_GUILTY = int(GUILTY) in (RANK, -1)
if PEERS == "save" and not IS_GUILTY:
    signal.signal(signal.SIGTERM, save)  # before the guilty one may end, whatever else the machine does
open(f"../ready{RANK}", "w").close()
while not all(os.path.exists(f"../ready{rank}") for rank in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.01)
if IS_GUILTY:
    ENDS[END]()
elif PEERS == "wait":
    signal.pause()
elif PEERS == "save":
    while True:
        signal.pause()
