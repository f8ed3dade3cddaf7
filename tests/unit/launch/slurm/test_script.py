"""The script of a SLURM job: what a person would write, and nothing that a hostile name could make of it."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dist_train.config.schema import SlurmConfig
from dist_train.errors import UserError
from launch.commands.slurm import plan_job
from launch.slurm import arrays, submission
from launch.slurm.render import BODY, Script, directives, render_script

ROOT = Path(__file__).resolve().parents[4]
DIGITS = str(ROOT / "configs" / "digits.yaml")
FLAGS = ("nodes", "gpus_per_node", "cpus_per_task", "mem", "time", "partition", "account", "qos", "constraint", "array")
BENIGN = ["digits", "a100:8", "24:00:00", "8", "gpu-long", "a&b|c", "--exclusive", "0-7%2", "64G", "über", "a b", ""]
HOSTILE = ["\n", "\r", "\0", "\x1b[2J", "\x85", "\u2028", "\u202e", "'", '"', "'\"'", "\\", "\\\n", "%j", "%A_%a", "%"]
HOSTILE += ["#", "-rf", "--wrap=X", "../../x", "/", "~", "*", "?", "{a,b}", "!", "!!", "$HOME", "${X:-y}", "$((1))"]
HOSTILE += [";", "&", "|", "> f", "< f", "<<E", ")", "(", "]", "=", " ", "\t", "𝕏", "é", "\udcff", "x" * 300, ";;"]
HOSTILE += ["esac", "#SBATCH"]
COMMANDS = ["touch {0}", ">{0}", ": >{0}"]
WRAPPED = ["$({})", "`{}`", "; {};", "\n{}\n", "' ; {} ; '", '" ; {} ; "', "| {}", "&& {} #", "${{x:=$({})}}", "<({})"]
WRAPPED += ["') ; {} ; ('", ";; *) {} ;;", "\n#SBATCH --wrap={}\n", "a[$({})]", "=$({})", "\\`{}\\`"]

FAKES = {
    "sbatch": """
        if [ "$1" = --parsable ]; then shift; fi
        export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n1 SLURM_JOB_NUM_NODES=1
        array=$(sed -n 's/^#SBATCH --array=\\([0-9]*\\).*/\\1/p' "$1")
        [ -n "$array" ] && export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$array
        bash "$1" >"$FAKE_OUT/log" 2>&1
        echo $? >"$FAKE_OUT/code"
        echo 7
    """,
    "srun": """
        while [ "${1#--}" != "$1" ]; do shift; done
        printf '%s\\0' "$@" >"$FAKE_OUT/argv"
    """,
    "scontrol": "exit 1",
    "squeue": "exit 1",
}
"""What a script meets instead of SLURM: an sbatch that runs it on the spot, an srun that writes down what it gets."""


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder where the fakes leave argv, log and code; the working folder is an empty one beside it."""
    programs, out, here = (tmp_path / name for name in ("bin", "out", "here"))
    for folder in (programs, out, here):
        folder.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_OUT", str(out))
    monkeypatch.chdir(here)
    yield out


def script(folder: Path, *arguments: str, **slurm: Any) -> Script:
    config = SlurmConfig.model_validate(slurm)
    tasks = {None: ("config.yaml", *arguments)}
    return Script(name="digits", folder=folder, logs=folder / "slurm", slurm=config, tasks=tasks, python="python3")


# ---------------------------------------------------------------- what it says


def test_it_asks_for_what_the_config_asks_for(tmp_path):
    text = render_script(
        script(tmp_path, nodes=2, gpus_per_node="a100:8", time="24:00:00", mem=4096, constraint="a&(b|c)")
    )
    found = dict(directives(text))
    assert found["--nodes"] == "2" and found["--ntasks-per-node"] == "1" and found["--gpus-per-node"] == "a100:8"
    assert found["--time"] == "24:00:00" and found["--mem"] == "4096" and found["--constraint"] == "a&(b|c)"
    assert found["--signal"] == "B:USR1@120" and found["--open-mode"] == "append" and "--requeue" in found
    assert found["--output"] == f"{tmp_path}/slurm/%j.log" and found["--chdir"] == str(tmp_path)
    assert "--partition" not in found and "--account" not in found  # the cluster's own default


def test_the_script_for_hand_use_has_the_same_body():
    by_hand = (ROOT / "slurm" / "train.sbatch").read_text()
    assert by_hand.endswith(BODY.read_text())


@pytest.mark.parametrize(
    "tasks", [{None: ("c.yaml", "x=1")}, {0: ("c.yaml", "x=a b"), 3: ("d.yaml",)}], ids=["job", "array"]
)
def test_bash_and_shellcheck_find_nothing(tasks, tmp_path):
    config = SlurmConfig(nodes=2, prefix="apptainer exec --nv 'an image.sif'", site="site.sh", options=["--exclusive"])
    made = Script(
        name="x", folder=tmp_path, logs=tmp_path, slurm=config, tasks=tasks, python="/a b/python", path="/c d"
    )
    path = tmp_path / "job.sbatch"
    path.write_text(render_script(made))
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here; bash -n found nothing")
    subprocess.run(["shellcheck", str(path)], check=True)


def test_arrays_are_written_as_they_are_read():
    assert arrays.parse_tasks("0-3,7,10-20:5%2") == ([0, 1, 2, 3, 7, 10, 15, 20], 2)
    assert arrays.format_tasks([0, 1, 2, 3, 7, 10, 15, 20], 2) == "0-3,7,10,15,20%2"
    for wrong in ("3-1", "0-99999"):
        with pytest.raises(UserError):
            arrays.parse_tasks(wrong)
    with pytest.raises(ValidationError):
        SlurmConfig(array="0-3,")


def test_neither_another_job_nor_sbatchs_variables_beat_the_script():
    inside = {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "9", "SLURM_CONF": "/c", "HOME": "/h"}
    assert submission.sbatch_environment([], inside) == {"SLURM_CONF": "/c", "HOME": "/h"}
    variables = {"SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "x", "SBATCH_NO_REQUEUE": "", "SBATCH_ACCOUNT": "mine"}
    assert submission.sbatch_environment(["--time", "--partition"], variables) == {"SBATCH_ACCOUNT": "mine"}


def test_a_site_file_reaches_the_job_and_a_missing_one_ends_it(fake_slurm):
    here = Path.cwd()
    (here / "site.sh").write_text(f"echo read >{here}/read\n")
    for site, code in (("site.sh", "0"), ("none.sh", "2")):
        (here / "job").write_text(render_script(script(here, site=site)))
        assert submission.sbatch(here / "job") == "7"
        assert (fake_slurm / "code").read_text().strip() == code
    assert (here / "read").exists()


@pytest.mark.parametrize(
    ("option", "why"),
    [("--output=x", "itself"), ("--outp=x", "itself"), ("--wrap=x", "itself"), ("--time=3", "slurm.time")],
)
def test_options_that_have_another_place_are_refused(option, why):
    with pytest.raises(ValidationError, match=why):
        SlurmConfig(options=[option])


# ---------------------------------------------------------------- hostile names


@dataclass
class Fuzz:
    """Makes values that try to become more than values."""

    random: random.Random
    canary: Path

    def word(self) -> str:
        pieces = self.random.choices([BENIGN, HOSTILE, WRAPPED], weights=[3, 3, 3], k=self.random.randint(1, 4))
        return "".join(self._piece(pool) for pool in pieces)

    def _piece(self, pool: list[str]) -> str:
        text = self.random.choice(pool)
        return text.format(self.random.choice(COMMANDS).format(self.canary)) if pool is WRAPPED else text

    def section(self) -> SlurmConfig:
        """A section of which each key got a hostile value where the schema lets it in, refused where it does not."""
        accepted: dict[str, Any] = {}
        for key in SlurmConfig.model_fields:
            value: Any = [self.word()] if key == "options" else self.word()
            if key in ("prefix", "python", "site") and self.random.random() < 0.5:
                continue
            try:
                SlurmConfig.model_validate({key: value})
            except ValidationError:
                continue
            accepted[key] = value
        return SlurmConfig.model_validate(accepted)

    def script(self, here: Path) -> Script:
        words = [self.word() for _ in range(self.random.randint(0, 3))]
        tasks: dict[int | None, list[str]] = {None: words} if self.random.random() < 0.7 else {3: words}
        folder = here / "".join(self.random.choices(["", self.word()], weights=[4, 1]))
        return Script(name="digits", folder=folder, logs=folder, slurm=self.section(), tasks=tasks, python="python3")


@pytest.mark.parametrize("fuzzed, in_bash", [(2_000, 60), pytest.param(10_000, 300, marks=pytest.mark.long)])
def test_hostile_names_are_refused_or_harmless(fake_slurm, tmp_path, fuzzed, in_bash):
    here, canary = Path.cwd(), tmp_path / "canary"
    fuzz = Fuzz(random.Random(20261128), canary)
    known = {"--job-name", "--chdir", "--output", "--open-mode", "--ntasks-per-node", "--signal", "--requeue"}
    known |= {f"--{flag.replace('_', '-')}" for flag in FLAGS}
    rendered = executed = 0
    for _ in range(fuzzed):
        try:
            made = fuzz.script(here)
            text = render_script(made)
        except (UserError, ValueError):  # refused; a NUL in a path is Python's to refuse
            continue
        rendered += 1
        _only_wanted_directives(text, made, known)
        if executed < in_bash and made.folder == here:
            executed += 1
            _run(made, text, fake_slurm)
            assert not canary.exists(), text
            assert list(here.iterdir()) == [], text
    assert rendered > fuzzed / 20 and executed == in_bash


def _only_wanted_directives(text: str, made: Script, known: set[str]) -> None:
    """Every #SBATCH line there is, wherever it stands, is one that was meant."""
    lines = [line for line in text.splitlines() if line.lstrip().startswith("#SBATCH")]
    names = [line.split()[1].partition("=")[0] for line in lines]
    own = [option.partition("=")[0] for option in made.slurm.options]
    assert set(names) <= known | set(own) and len(names) == len(set(names)) + len(set(own) & known), text
    assert len(directives(text)) == len(lines)
    output = dict(directives(text))["--output"]
    assert output is not None and output.removesuffix(".log").count("%") == (1 if None in made.tasks else 2)


def _run(made: Script, text: str, out: Path) -> None:
    """Gives it to the fake sbatch. What reaches srun must be what was meant, to the byte."""
    job = out.parent / "job.sbatch"
    job.write_text(text)
    (out / "argv").unlink(missing_ok=True)
    assert submission.sbatch(job) == "7"
    log = (out / "log").read_text(errors="replace")
    if made.slurm.site:  # names no file: the job ends before it begins
        assert (out / "code").read_text().strip() == "2" and not (out / "argv").exists(), log
        return
    assert (out / "code").read_text().strip() == "0", log
    got = (out / "argv").read_bytes().decode().split("\0")[:-1]
    (words,) = made.tasks.values()
    expected = [made.slurm.python or "python3", "-m", "dist_train.launch", "train", "--grace", "90", *words]
    assert got[-len(expected) :] == expected
    subprocess.run(["bash", "-n", str(job)], check=True)


def test_hostile_flags_and_overrides_are_refused_or_stay_in_the_run_root(fake_slurm, tmp_path):
    here, canary = Path.cwd(), tmp_path / "canary"
    fuzz = Fuzz(random.Random(5), canary)
    submitted = 0
    for number in range(150):
        flags: dict[str, Any] = dict.fromkeys(FLAGS)
        flags["nproc_per_node"] = fuzz.word() if number % 5 == 0 else None
        if number % 3 == 0:
            flags[fuzz.random.choice(FLAGS)] = fuzz.word()
        key = fuzz.random.choice(["name", "tracking.wandb.project", "data.root", "tracking.wandb.tags"])
        words = (
            DIGITS,
            f"{key}={fuzz.word() if number % 2 else json.dumps([fuzz.word()])}",
            "tracking.wandb.group=a b",
        )
        try:
            made, runs = plan_job(words, run_dir=None, resume=None, allow_change=(), max_restarts=0, **flags)
            submission.submit(made, runs)
        except UserError:
            made_nothing = not (here / "runs").exists() or all(
                (run / "slurm" / "job.json").exists() for run in (here / "runs").glob("*/*")
            )
            assert made_nothing
            continue
        submitted += 1
        for run in runs.values():
            assert run.folder.resolve().is_relative_to(here / "runs" / run.config.name)
        assert {path.name for path in here.iterdir()} == {"runs"}
    assert not canary.exists() and submitted > 10


def test_no_variable_of_the_environment_is_written_down(fake_slurm, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary-of-a-secret")
    none: dict[str, Any] = dict.fromkeys((*FLAGS, "nproc_per_node"))
    submission.submit(*plan_job((DIGITS,), run_dir=None, resume=None, allow_change=(), max_restarts=0, **none))
    written = [path for path in Path.cwd().rglob("*") if path.is_file()]
    assert {path.name for path in written} == {"job.sbatch", "config.yaml", "job.json"}
    assert not any("canary" in path.read_text() for path in [*written, fake_slurm / "log"])


def test_an_sbatch_that_refuses_leaves_nothing(fake_slurm, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n"
    )
    none: dict[str, Any] = dict.fromkeys((*FLAGS, "nproc_per_node"))
    made, runs = plan_job((DIGITS,), run_dir=None, resume=None, allow_change=(), max_restarts=0, **none)
    with pytest.raises(UserError, match="^sbatch refuses: invalid partition specified: x$"):
        submission.submit(made, runs)
    assert list(Path.cwd().iterdir()) == []
