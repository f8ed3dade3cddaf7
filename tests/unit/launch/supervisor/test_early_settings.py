"""What a program sets before it imports torch is found in its source, which is never run."""

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from launch.supervisor.early_settings import LATER, early_setting

SOURCES = {
    "a subscript": ("import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch", "2 sets OMP_NUM_THREADS"),
    "under another name": ("import os as o\no.environ['TORCH_LOGS'] = 'x'\nimport torch", "2 sets TORCH_LOGS"),
    "from os import": ("from os import environ\nenviron['PYTORCH_JIT'] = '0'\nimport torch", "2 sets PYTORCH_JIT"),
    "renamed": ("from os import environ as e, getcwd\ne['KMP_X'] = '0'\nimport torch", "2 sets KMP_X"),
    "an alias": ("import os\nenv = os.environ\nenv['MKL_X'] = '0'\nimport torch", "3 sets MKL_X"),
    "a copy": ("import os\nenv = os.environ.copy()\nenv['MKL_X'] = '0'\nimport torch", None),
    "a copy by hand": ("import os\nenv = {**os.environ, 'MKL_X': '0'}\nimport torch", None),
    "bytes": ("import os\nos.environb[b'MKL_X'] = b'0'\nimport torch", "2 sets MKL_X"),
    "setdefault": ("import os\nos.environ.setdefault('MKL_X', '0')\nimport torch", "2 sets MKL_X"),
    "a default of what is set": ("import os\nos.environ.setdefault('SET', '0')\nimport torch", None),
    "another value of what is set": ("import os\nos.environ['SET'] = '0'\nimport torch", "2 sets SET"),
    "update": ("import os\nos.environ.update({'RANK': '0', 'MKL_X': '0'})\nimport torch", "2 sets MKL_X"),
    "update, by keyword": ("import os\nos.environ.update(RANK='0', MKL_X='0')\nimport torch", "2 sets MKL_X"),
    "update, with a dict": ("import os\nos.environ.update(dict(MKL_X='0'))\nimport torch", "2 sets MKL_X"),
    "update, with anything": ("import os\nos.environ.update(f())\nimport torch", "2 sets os.environ"),
    "update, with stars": ("import os\nos.environ.update(**f())\nimport torch", "2 sets os.environ"),
    "update, harmless": ("import os\nos.environ.update({'RANK': '0'}, WORLD_SIZE='1')\nimport torch", None),
    "merged": ("import os\nos.environ |= {'MKL_X': '0'}\nimport torch", "2 sets MKL_X"),
    "merged, harmless": ("import os\nos.environ |= {'WANDB_MODE': 'offline'}\nimport torch", None),
    "putenv": ("import os\nos.putenv('MKL_X', '0')\nimport torch", "2 sets MKL_X"),
    "putenv, imported": ("from os import putenv\nputenv('MKL_X', '0')\nimport torch", "2 sets MKL_X"),
    "deleted": ("import os\ndel os.environ['MKL_X']\nimport torch", "2 sets MKL_X"),
    "popped": ("import os\nos.environ.pop('MKL_X', None)\nimport torch", "2 sets MKL_X"),
    "cleared": ("import os\nos.environ.clear()\nimport torch", "2 sets os.environ"),
    "replaced": ("import os\nos.environ = {}\nimport torch", "2 sets os.environ"),
    "two targets": ("import os\na = os.environ['MKL_X'] = '0'\nimport torch", "2 sets MKL_X"),
    "in a tuple": ("import os\na, os.environ['MKL_X'] = '0', '0'\nimport torch", "2 sets MKL_X"),
    "in a condition": ("import os\nif x:\n os.environ['MKL_X'] = '0'\nimport torch", "3 sets MKL_X"),
    "in the condition": ("import os\nif os.environ.setdefault('MKL_X', '0'):\n pass\nimport torch", "2 sets MKL_X"),
    "in a loop": ("import os\nfor k in f():\n os.environ[k] = '0'\nimport torch", "3 sets os.environ"),
    "in a match": ("import os\nmatch x:\n case 1:\n  os.environ['MKL_X'] = ''\nimport torch", "4 sets MKL_X"),
    "in a lambda": ("import os\nf = lambda: os.environ.update(MKL_X='')\nf()\nimport torch", "2 sets MKL_X"),
    "in a function": ("import os\ndef f():\n os.environ['MKL_X'] = '0'\nf()\nimport torch", "3 sets MKL_X"),
    "in a class": ("import os\nclass A:\n os.environ['MKL_X'] = '0'\nimport torch", "3 sets MKL_X"),
    "before the function's own import": (
        "import os\ndef main():\n os.environ['MKL_X'] = '0'\n import torch\nif __name__ == '__main__':\n main()",
        "3 sets MKL_X",
    ),
    "after the function's own import": ("import os\ndef f():\n import torch\n os.environ['MKL_X'] = '0'\nf()", None),
    "another function's import": (
        "import os\ndef f():\n import torch\ndef g():\n os.environ['MKL_X'] = '0'\ng()\nf()",
        "5 sets MKL_X",
    ),
    "after the import": ("import os, torch\nos.environ['MKL_X'] = '0'", None),
    "after a part of it": ("import os\nfrom torch.nn import Linear\nos.environ['MKL_X'] = '0'", None),
    "after a try": ("import os\ntry:\n import torch\nexcept ImportError:\n raise\nos.environ['MKL_X'] = '0'", None),
    "after a with": ("import os\nwith f():\n import torchvision\nos.environ['MKL_X'] = '0'", None),
    "after a maybe": ("import os\nif x:\n import torch\nos.environ['MKL_X'] = '0'", "4 sets MKL_X"),
    "after one for types": (
        "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import torch\nos.environ['MKL_X'] = '0'",
        "5 sets MKL_X",
    ),
    "in the else of a maybe": ("import os\nif x:\n import torch\nelse:\n os.environ['MKL_X'] = ''", "5 sets MKL_X"),
    "another's torch": ("import os, torchlight\nos.environ['MKL_X'] = '0'\nimport torch", "2 sets MKL_X"),
    "read alone": ("import os\nx = os.environ['MKL_X'], os.environ.get('MKL_Y'), os.getenv('Z')\nimport torch", None),
    "another's mapping": ("settings = {}\nsettings['MKL_X'] = '0'\nsettings.update(MKL_Y='0')\nimport torch", None),
    "a comment": ("import os\n# os.environ['MKL_X'] = '0'\n'''os.environ['MKL_X'] = '0' '''\nimport torch", None),
    "dotenv": ("from dotenv import load_dotenv\nload_dotenv()\nimport torch", "2 sets os.environ"),
    "harmless ones": (
        "import os\nos.environ['MASTER_PORT'] = f'{port}'\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'\n"
        "os.environ.setdefault('NCCL_DEBUG', 'INFO')\nos.environ['TOKENIZERS_PARALLELISM'] = 'false'\nimport torch",
        None,
    ),
    "no Python": ("import os\nos.environ['MKL_X'] = '0\nimport torch", None),
    "no text": ("\0\0", None),
    "nothing": ("", None),
}


def test_what_is_found_in_a_script(tmp_path):
    found, expected = {}, {}
    for name, (source, what) in SOURCES.items():
        (tmp_path / "train.py").write_text(source)
        found[name] = str(early_setting((str(tmp_path / "train.py"),), {"SET": "1"}))
        expected[name] = f"train.py:{what} before it imports torch" if what else "None"
    assert found == expected


def write(folder: Path, **files: str) -> None:
    for name, source in files.items():
        path = folder / f"{name.replace('__', '/', 1)}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))


SETS = "import os\nos.environ['MKL_X'] = '0'\n"


FOLDERS = [
    ({"train": "import setup_env\nimport torch", "setup_env": SETS}, "setup_env.py:2"),
    ({"train": "from setup_env import *\nimport torch", "setup_env": SETS}, "setup_env.py:2"),
    ({"train": "import torch\nimport setup_env", "setup_env": SETS}, None),
    ({"train": "import model\n" + SETS, "model": "import torch"}, None),
    ({"train": "import model\n" + SETS, "model": "def f():\n import torch"}, "train.py:3"),
    ({"train": "import a\nimport torch", "a": "import b", "b": "import a\n" + SETS}, "b.py:3"),
    ({"train": "from pkg import env\nimport torch", "pkg__env": SETS}, "env.py:2"),
    ({"train": "import pkg.env.x\nimport torch", "pkg____init__": "", "pkg__env": SETS}, "env.py:2"),
    ({"train": "from pkg.a import f\nimport torch", "pkg____init__": SETS, "pkg__a": ""}, "__init__.py:2"),
    ({"train": "import pkg.a\nimport torch", "pkg__a": "from . import b", "pkg__b": SETS}, "b.py:2"),
    ({"train": "import pkg.a\nimport torch", "pkg__a": "from .b import c", "pkg__b": SETS}, "b.py:2"),
    (
        {"train": "import m\nimport torch", "m": "if __name__ == '__main__':\n import os\n os.environ['X'] = ''"},
        None,
    ),
    ({"train": "import broken\nimport torch", "broken": "import os\nos.environ['X' = 1"}, None),
    ({"train": "import numpy, json, no_such_module\nimport torch"}, None),
]


def test_modules_of_its_folder_are_followed(tmp_path):
    for number, (files, expected) in enumerate(FOLDERS):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number), **files)
        seen = early_setting((str(tmp_path / str(number) / "train.py"),), {})
        assert str(seen).partition(" sets ")[0] == str(expected), files


def test_modules_and_folders_are_found_without_importing_them(tmp_path, monkeypatch):
    boom = "raise SystemExit('was imported')\n"
    write(tmp_path, pkg____init__=boom, pkg__train=boom + SETS, pkg____main__=boom + "import pkg.env", pkg__env=SETS)
    monkeypatch.chdir(tmp_path)
    assert str(early_setting(("-m", "pkg.train"), {})).startswith("train.py:3 ")
    assert str(early_setting(("-m", "pkg"), {})).startswith("env.py:2 ")
    assert early_setting((str(tmp_path / "pkg"),), {}) is None, (
        "where the folder is in sys.path, pkg is not to be found"
    )
    monkeypatch.chdir("/")
    assert (
        early_setting(("-m", "pkg"), {})
        is early_setting(("-m", "no.such"), {})
        is early_setting(("no.py",), {})
        is None
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # installed
    assert str(early_setting(("-m", "pkg"), {})).startswith("env.py:2 ")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:")
    assert str(early_setting(("-m", "pkg.train"), {})).startswith("train.py:3 ")
    write(tmp_path / "pkg", __main__="import env")
    assert str(early_setting((str(tmp_path / "pkg"),), {})).startswith("env.py:2 ")


def test_it_takes_little_more_than_reading_the_source(tmp_path):
    body = "".join(f"def f{n}(x):\n    return [x + {n} for _ in range({n})]\n" for n in range(500))
    write(tmp_path, train=f"import os\nimport model\n{body}", model=f"import torch\n{body}")

    def took(work):
        began = time.process_time()
        work()
        return time.process_time() - began

    def look():
        assert early_setting((str(tmp_path / "train.py"),), {}) is None

    def read():
        for _ in range(2):
            ast.parse(body)

    looked, parsed = (min(took(work) for _ in range(5)) for work in (look, read))
    assert looked < 10 * parsed, "measured: 1.1"


RECORDS = """
import os, sys
names = set()
class Recording(type(os.environ)):
    def __getitem__(self, name): names.add(name); return super().__getitem__(name)
    def __contains__(self, name): names.add(name); return super().__contains__(name)
os.environ.__class__ = Recording
import torch, torch.distributed
print(*names, sep="\\n")
"""
SPY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
char *getenv(const char *name) {
    static char *(*real)(const char *);
    if (!real) real = dlsym(RTLD_NEXT, "getenv");
    fprintf(stderr, "getenv %s\\n", name);
    return real(name);
}
"""


def test_what_is_said_to_be_read_later_is_not_read_while_torch_is_imported(tmp_path):
    """Neither by Python nor, where there is a compiler to look into that, by the libraries."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    if shutil.which("gcc"):
        (tmp_path / "spy.c").write_text(SPY)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", "spy.so", "spy.c", "-ldl"], cwd=tmp_path, check=True)
        environment["LD_PRELOAD"] = str(tmp_path / "spy.so")
    command = [sys.executable, "-c", RECORDS]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    in_libraries = re.findall(r"^getenv (\w+)$", done.stderr, re.MULTILINE)
    names = {*done.stdout.split(), *in_libraries} - {"_"}
    assert {"TORCH_LOGS", "PYTORCH_JIT"} < names and ("LD_PRELOAD" in environment) == ("OMP_NUM_THREADS" in names)
    assert [name for name in names if LATER.fullmatch(name) and not name.startswith("PYTHON")] == []
