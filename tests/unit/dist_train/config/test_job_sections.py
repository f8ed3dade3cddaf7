"""Sections of jobs: each says what of it a job executes, since a stranger's config may be submitted."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from dist_train.config import recorded, trust
from dist_train.config.schema import JOB_SECTIONS, SAFE_TO_CHANGE, RunConfig, Section
from dist_train.config.types import Count
from dist_train.rundir.layout import SCHEDULERS, RunDir

COMMANDS = ("touch here", "./here.sh", "--export=ALL", ["touch here"], ["--export=ALL"], {"a": "touch here"})
DATA = {
    "run_root", "eval.best", "tracking.texts.prompt",
    *(f"tracking.wandb.{key}" for key in ("project", "entity", "group", "tags", "name", "notes", "job_type")),
}  # fmt: skip
"""Keys that take any text, which nobody executes. What a component takes is of the ranks, and in trust.powers."""


def sections(kind: type[Section], above: str = "") -> Iterator[tuple[str, type[Section]]]:
    """The section and those in it, by their path; without components, which are chosen by a name."""
    yield above, kind
    for key, field in kind.model_fields.items():
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if one is not type(None)]
        if len({*inner} - {field.annotation}) < 2 and isinstance(inner[-1], type) and issubclass(inner[-1], Section):
            yield from sections(inner[-1], f"{above}{key}.")


def silent(kind: type[Section], above: str = "") -> set[str]:
    """Keys that take a command, are not said to be executed, and not known to be data."""
    texts = {key for key, field in kind.model_fields.items() if _takes_a_command(field)}
    return {f"{above}{key}" for key in texts - {*kind.executes}} - DATA


def _takes_a_command(field: Any) -> bool:
    whole = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return any(_takes(TypeAdapter(whole), command) for command in COMMANDS)


def _takes(kind: TypeAdapter, value: Any) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


PLAIN = dict(sections(RunConfig))


@pytest.mark.parametrize("path", PLAIN)
def test_what_a_job_executes_is_said_by_its_section(path):
    assert silent(PLAIN[path], path) == set()
    assert not PLAIN[path].executes or path.rstrip(".") in JOB_SECTIONS, "trust.powers looks at sections of the run"


def test_a_section_that_does_not_say_so_is_found():
    class Silent(Section):
        nodes: Count = 1
        prologue: str = ""
        options: list[str] = []
        walltime: str = ""
        executes: ClassVar[tuple[str, ...]] = ("options",)

    assert silent(Silent, "pbs.") == {"pbs.prologue", "pbs.walltime"}
    assert {"tracking.wandb.", "slurm."} <= PLAIN.keys(), "it looks everywhere"


def _config(**more: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"name": "synthetic"}, "model": {"name": "mlp"}, **more})


EXECUTED = [(name, key) for name in JOB_SECTIONS for key in PLAIN[f"{name}."].executes]


@pytest.mark.parametrize(("name", "key"), EXECUTED)
def test_each_key_that_is_executed_needs_trust_where_there_is_a_job_and_no_other_does(name, key):
    value = "touch" if _takes(TypeAdapter(PLAIN[f"{name}."].model_fields[key].annotation), "touch") else ["--export=A"]
    config = _config(**{name: {key: value}})
    assert [(power.where, power.what) for power in trust.powers(config, job=True)] == [
        (f"{name}.{key}", value if isinstance(value, str) else value[0])
    ]
    assert trust.powers(config) == trust.powers(_config(), job=True) == []


def test_the_config_of_a_submission_is_no_config_of_the_users(tmp_path):
    assert JOB_SECTIONS == SCHEDULERS, "a submission's folder is called as its section"
    for scheduler in SCHEDULERS:
        run = RunDir(tmp_path / scheduler)
        run.job(scheduler).parent.mkdir(parents=True)
        config = run.job(scheduler).with_name("config.yaml")
        config.write_text("")
        assert not recorded.is_recorded(config)
        run.job(scheduler).symlink_to("nowhere")
        assert recorded.is_recorded(config) and recorded.is_recorded(run.config)


def test_no_result_depends_on_a_job():
    assert set(JOB_SECTIONS) <= set(SAFE_TO_CHANGE)
