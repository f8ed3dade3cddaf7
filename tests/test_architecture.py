"""The rules of the house: who may import what, who may know what, and how long things may grow."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from dist_train.rundir.layout import SCHEDULERS, Below, GenerationDir, RunDir
from launch.commands.train import plan_training
from launch.plan.flags import Flags
from tests.house import by_folder, import_graph, in_circles
from tests.sharing import GROUPS

ROOT = Path(__file__).resolve().parents[1]
OUR_FILES = sorted([*ROOT.glob("dist_train/**/*.py"), *ROOT.glob("launch/**/*.py")])
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))
LONGEST_FILE, LONGEST_FUNCTION = 330, 60
TABLES = {"dist_train/config/schema.py"}
"""Lists of what may be written, with nothing to follow from one line to the next: as long as they have to be."""
RANK_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
COLLECTIVES = {"all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all"}
COLLECTIVES |= {"all_to_all_single", "barrier", "broadcast", "broadcast_object_list", "destroy_process_group", "gather"}
COLLECTIVES |= {"gather_object", "init_process_group", "irecv", "isend", "monitored_barrier", "new_group", "recv"}
COLLECTIVES |= {"reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list", "send"}
SHARED = (
    *("dist_train.config", "dist_train.rundir", "dist_train.report"),
    *("dist_train.errors", "dist_train.memory", "dist_train.processor"),
)
SLURM_WORD = re.compile(
    r"slurm|SLURM|Slurm|S(BATCH|QUEUE)_|\b(sbatch|squeue|scancel|sacct|srun|scontrol|salloc)\b"
    r"|^'.*\b(PENDING|RUNNING|COMPLETED)\b"
)
SLURM_OUTSIDE = {
    "dist_train/config/schema.py": "the section",
    "dist_train/config/types.py": "what its keys take",
    "dist_train/rundir/layout.py": "the folder of a submission",
    "launch/scheduler.py": "the choice",
    "launch/cli.py": "the command",
    "launch/commands/slurm.py": "the command",
    "launch/commands/sweep.py": "sweeps that submit to it",
    "launch/sweep/start.py": "sweeps that submit to it",
    "launch/commands/train.py": "help",
    "launch/commands/run.py": "help",
    "launch/commands/launch_flags.py": "help",
    "launch/plan/rendezvous.py": "advice in an error",
}
"""Files outside launch/slurm/ that name the scheduler in code or text; docstrings and comments may anywhere. Who adds
another one goes through these."""
HELP = {name for name, why in SLURM_OUTSIDE.items() if why in ("help", "advice in an error")}
RUNS_CODE_FROM_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, at the top or inside of a function: `from a.b import c` is a.b.c."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-1]
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every string constant."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call, with what is called as it is written: `torch.load`."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def belongs_to(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def assert_none(violations: list[str], rule: str) -> None:
    assert not violations, f"{rule}:\n  " + "\n  ".join(violations)


def test_the_launcher_knows_of_the_worker_only_its_configuration():
    found = [
        f"{name_of(path)}:{line} imports {name}"
        for path in OUR_FILES
        if path.is_relative_to(ROOT / "launch")
        for line, name in imports(path)
        if belongs_to(name, "dist_train") and not belongs_to(name, *SHARED)
    ]
    assert_none(found, "launch/ imports from dist_train only the shared rooms")


def test_the_worker_does_not_know_the_launcher():
    found = [
        f"{name_of(path)}:{line} imports {name}"
        for path in OUR_FILES
        if path.is_relative_to(ROOT / "dist_train")
        for line, name in imports(path)
        if belongs_to(name, "launch")
    ]
    assert_none(found, "nothing in dist_train/ imports from launch/")


def test_the_command_line_is_there_without_the_heavy_libraries():
    script = (
        "import sys, launch.cli; print(*{'torch', 'numpy', 'wandb', 'pydantic', 'rich', 'yaml'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_program_of_others_starts_without_the_schema():
    """Its import takes 0.1 s, for which the ranks would wait."""
    script = "import sys, launch.commands.run, launch.supervisor; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_configuration_is_read_without_torch():
    script = "import sys, dist_train.config.source; print(*{'torch', 'wandb', 'rich'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_the_fork_server_imports_early_reads_no_environment():
    """The plan's comes later. OpenMP reads how many threads it may have as torch and NumPy are loaded."""
    from launch.children import EARLY

    script = (
        f"import sys, {', '.join(EARLY['train'] + EARLY['run'])}; print(*{{'torch', 'numpy'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_wandb_is_behind_one_door():
    found = [
        f"{name_of(path)}:{line}"
        for path in OUR_FILES
        for line, name in imports(path)
        if belongs_to(name, "wandb") and name_of(path) != "dist_train/tracking/wandb.py"
    ]
    assert_none(found, "wandb is imported in tracking/wandb.py alone")


def test_collectives_are_called_in_one_folder():
    found = []
    for path in OUR_FILES:
        if path.is_relative_to(ROOT / "dist_train/parallel"):
            continue
        found += [
            f"{name_of(path)}:{line} imports {name}"
            for line, name in imports(path)
            if name.rpartition(".")[0].startswith("torch.distributed") and name.rpartition(".")[2] in COLLECTIVES
        ]
        found += [
            f"{name_of(path)}:{call.lineno} calls {called}"
            for call, called in calls(path)
            if re.fullmatch(r"(dist|torch\.distributed|distributed)\.(\w+)", called)
            and called.rpartition(".")[2] in COLLECTIVES
        ]
    assert_none(found, "collectives are called in dist_train/parallel/ alone")


def words_of(path: Path) -> Iterator[str]:
    """Names, imports and, in quotes, texts: patterns and parts of f-strings among them; without docstrings."""
    nodes = list(ast.walk(parsed(path)))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if node not in docstrings:
            quote = "'" * isinstance(node, ast.Constant)
            yield from (f"{quote}{value}{quote}" for _, value in ast.iter_fields(node) if isinstance(value, str))


def test_slurm_is_known_in_one_place():
    outside = [path for path in OUR_FILES if not path.is_relative_to(ROOT / "launch/slurm")]
    found = {name_of(path): [word for word in words_of(path) if SLURM_WORD.search(word)] for path in outside}
    found = {name: words for name, words in found.items() if words}
    assert found.keys() == SLURM_OUTSIDE.keys(), "what is SLURM's is in launch/slurm/, and in these files"
    logic = [f"{name}: {word}" for name in HELP for word in found[name] if " " not in word]
    assert_none(logic, "a help text is a sentence, on which nothing depends")


def test_a_scheduler_is_behind_one_file():
    """But for the command and the sweeps that submit to it."""
    allowed = {"launch/scheduler.py", "launch/commands/slurm.py", "launch/sweep/start.py"}
    found = [
        f"{name_of(path)}:{line} imports {name}"
        for path in OUR_FILES
        if name_of(path) not in allowed and not path.is_relative_to(ROOT / "launch/slurm")
        for line, name in imports(path)
        if belongs_to(name, "launch.slurm")
    ]
    assert_none(found, "launch/slurm/ is imported by launch/scheduler.py alone")


MAY_IMPORT = {
    "launch/rank": (),
    "launch/job.py": ("dist_train.rundir",),
    "launch/processes.py": ("dist_train.rundir.process_id",),
    "launch/torch_patches.py": (
        "torch.distributed.elastic.agent.server.api",
        "torch.distributed.elastic.multiprocessing.api",
    ),
    "launch/node/channel.py": (),
    "launch/node/fork_server.py": ("torch",),
    "launch/node": (
        *("launch.node", "launch.processes", "launch.torch_patches", "launch.rank.page"),
        *("dist_train.rundir", "torch"),
    ),
    "launch/relay": ("launch.relay", "launch.children", "launch.console", "dist_train.rundir"),
    "dist_train/rundir": ("dist_train.rundir", "dist_train.errors", "dist_train.config.schema"),
}
"""What a folder or file imports besides the standard library. A process's folder has what may be in that process; what
is loaded by its path, or before the program, has the standard library alone."""


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_a_process_imports_only_what_may_be_in_it(place):
    nearer = [ROOT / other for other in MAY_IMPORT if other.startswith(f"{place}/")]
    found = [
        f"{name_of(path)}:{line} imports {name}"
        for path in OUR_FILES
        if path.is_relative_to(ROOT / place) and not any(map(path.is_relative_to, nearer))
        for line, name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names and not belongs_to(name, *MAY_IMPORT[place])
    ]
    assert_none(found, f"{place} imports {', '.join(MAY_IMPORT[place]) or 'nothing'} and the standard library alone")


def test_only_the_processes_below_the_supervisor_import_torch():
    heavy = ("torch", "torchvision", "numpy", "wandb")
    found = [
        f"{name_of(path)}:{line} imports {name}"
        for path in OUR_FILES
        if path.is_relative_to(ROOT / "launch") and not path.is_relative_to(ROOT / "launch/node")
        for line, name in imports(path)
        if belongs_to(name, *heavy) and name_of(path) != "launch/torch_patches.py"
    ]
    assert_none(found, "torch is imported in launch/node/ alone")


def test_imports_go_in_one_direction():
    graph = import_graph(ROOT)
    assert in_circles(graph) == set(), "files that import each other"
    assert in_circles(by_folder(graph)) == set(), "folders that import each other"


PATHS_OF_A_RUN = {name for name in vars(RunDir) if isinstance(vars(RunDir)[name], Below)}
PATHS_OF_A_RUN = {getattr(RunDir(Path("run")), name).name for name in PATHS_OF_A_RUN}
PATHS_OF_A_RUN |= {"nodes", "ranks", "errors", "stacks", "quiet", "record", "verdict.json", "agent.json", *SCHEDULERS}


def test_paths_of_a_run_are_joined_in_one_file():
    """`folder / "checkpoints"`, and the like. A sweep's folder has names of its own."""
    own = {"launch/sweep/store.py": {"logs"}, "launch/rank/main.py": {"ranks", "errors"}}
    found = [
        f"{name_of(path)}:{node.lineno} / {node.right.value!r}"
        for path in OUR_FILES
        if name_of(path) != "dist_train/rundir/layout.py"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant)
        and str(node.right.value).partition("/")[0] in PATHS_OF_A_RUN - own.get(name_of(path), set())
    ]
    assert_none(found, "paths of a run directory are joined in dist_train/rundir/layout.py alone")


def test_names_that_only_a_run_has_stand_in_its_room():
    """In no tuple and no pattern either."""
    names = re.compile(r"(lives|environment|job)\\?\.json|\.(lease|nodes|lock-node)\b|\bgenerations\b")
    found = [
        f"{name_of(path)} {word}"
        for path in OUR_FILES
        if not path.is_relative_to(ROOT / "dist_train/rundir")
        for word in words_of(path)
        if word.startswith("'") and " " not in word and names.search(word)
    ]
    assert_none(found, "paths of a run directory are known in dist_train/rundir/ alone")


def test_a_rank_joins_the_same_paths():
    """What it joins by itself, since it has the standard library alone."""
    generation = GenerationDir(Path("7"))
    assert [generation.ranks, generation.errors] == [Path("7/ranks"), Path("7/errors")]


def test_there_is_one_identity_of_a_process():
    allowed = {"dist_train/rundir/process_id.py", "launch/rank/main.py"}  # a rank writes its own by itself
    found = [
        f"{name_of(path)}:{line} {text}"
        for path in OUR_FILES
        if name_of(path) not in allowed
        for line, text in texts(path)
        if re.search(r"boot_id|/ns/pid", text)
    ]
    found += [
        f"{name_of(path)}:{call.lineno} {called}"
        for path in OUR_FILES
        for call, called in calls(path)
        if called == "os.kill" and ast.unparse(call.args[1]) == "0" and name_of(path) not in allowed
    ]
    assert_none(found, "who a process is, and whether it lives, is known in dist_train/rundir/process_id.py alone")


def test_there_is_one_way_to_replace_a_file():
    allowed = {"dist_train/rundir/files.py", "launch/rank/main.py"}  # which imports the standard library alone
    allowed |= {"launch/relay/targets.py"}  # where the log itself gets another name
    found = [
        f"{name_of(path)}:{call.lineno}"
        for path in OUR_FILES
        for call, called in calls(path)
        if called == "os.replace" and name_of(path) not in allowed
    ]
    assert_none(found, "files are replaced by dist_train/rundir/files.py alone")


def test_what_we_change_in_torch_stands_in_one_file():
    """Assignments to a module's attribute, or into a function's cells."""
    found = [
        f"{name_of(path)}:{node.lineno} {ast.unparse(target)}"
        for path in OUR_FILES
        if name_of(path) != "launch/torch_patches.py"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if re.search(r"^(torch|dist|nn|api|F)\.|\.cell_contents$", ast.unparse(target)) and not is_setting(target)
    ]
    assert_none(found, "torch is changed in launch/torch_patches.py alone")


def is_setting(target: ast.expr) -> bool:
    """Torch's own switches, which are there to be set."""
    settings = ("torch.backends.", "torch._dynamo.config.", "torch.utils.deterministic.")
    return ast.unparse(target).startswith(settings)


def test_who_a_rank_is_has_one_source():
    # launch/ names a rank's files by it
    allowed = {"dist_train/parallel/ranks.py", "launch/node/agent.py", "launch/rank/main.py"}
    found = [
        f"{name_of(path)}:{line} {text}"
        for path in OUR_FILES
        for line, text in texts(path)
        if text in RANK_VARIABLES and name_of(path) not in allowed
    ]
    assert_none(found, "RANK and the like are read in parallel/ranks.py, and where the launcher starts ranks, alone")


RUNS_THE_PROGRAM = "launch/rank/main.py"


def test_nothing_runs_code_that_came_as_data():
    found = []
    for path in OUR_FILES:
        found += [
            f"{name_of(path)}:{line} imports {name}"
            for line, name in imports(path)
            if belongs_to(name, *RUNS_CODE_FROM_DATA)
        ]
        if name_of(path) != RUNS_THE_PROGRAM:
            found += [
                f"{name_of(path)}:{call.lineno} {called}" for call, called in calls(path) if _runs_code(call, called)
            ]
    assert_none(
        found, "no pickle, torch.load without weights_only=True, yaml.load, eval, exec, os.system or shell=True"
    )


def _runs_code(call: ast.Call, called: str) -> bool:
    in_a_shell = any(
        k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in call.keywords
    )
    loads = re.fullmatch(r"(torch|yaml)\.(unsafe_|full_)?load(_all)?", called) is not None
    loads = loads and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    return in_a_shell or loads or called in {"eval", "exec", "os.system", "os.popen"}


def test_no_file_outgrows_a_reader():
    found = [
        f"{name_of(path)} has {lines} lines"
        for path in OUR_FILES
        if name_of(path) not in TABLES and (lines := len(path.read_text().splitlines())) > LONGEST_FILE
    ]
    assert_none(found, f"files have at most {LONGEST_FILE} lines")


def test_no_function_outgrows_a_screen():
    found = [
        f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines"
        for path in OUR_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert_none(found, f"functions have at most {LONGEST_FUNCTION} lines")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_validates_and_plans(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n#\n"), "for editors"
    planned = plan_training((str(path),), run_dir=None, resume=None, allow_change=(), **asdict(Flags()))
    config, plan = planned.config, planned.plan
    assert plan.world_size >= 1
    assert plan.folder.parent == Path(config.run_root) / config.name
    assert list(tmp_path.iterdir()) == []  # planning writes nothing


def test_what_shares_a_worker_is_there():
    assert_none([begin for begin in GROUPS if not (ROOT / begin).exists()], "tests/sharing.py names what is there")
