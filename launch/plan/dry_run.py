"""`--dry-run`: what would happen, from the very plan that would run. Starts no rank; a text
may fill its cache."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dist_train.config.dump import to_yaml
from dist_train.config.replies import Description
from dist_train.config.schema import RunConfig
from dist_train.config.shares import share
from dist_train.config.stdout import tell
from dist_train.config.trust import powers
from dist_train.errors import ExitCode
from dist_train.report.words import holding_in_words, size

from ..children import ask
from ..console import mark, say
from . import LaunchPlan

_BARS = "▁▂▃▄▅▆▇█"
_ANSWER_TIMEOUT_S = 300
"""Seconds for building the model and counting the data."""


def show(config: RunConfig, plan: LaunchPlan, config_path: str, overrides: Sequence[str], *, full: bool) -> int:
    """Shows the plan to a person, on stderr. With `full`, the resolved config comes before it as YAML, on stdout.
    Returns the exit code: the training's own, where something would end the training."""
    facts = ask_description(config, config_path, overrides)
    if facts.exit_code:
        say(f"{mark('✗', 'red')} {facts.problem}")
        return facts.exit_code
    if plan.device == "gpu" and facts.not_on_a_gpu:
        say(f"{mark('✗', 'red')} {facts.not_on_a_gpu}")
        return ExitCode.CONFIG
    if full:
        tell(to_yaml(config))
    for name, text in _lines(config, plan, facts):
        say(f"{name:<9}{text}")
    say(plan.command)
    say("nothing was started, nothing was written")
    return ExitCode.DONE


def ask_description(config: RunConfig, config_path: str, overrides: Sequence[str]) -> Description:
    """What only torch can say of model and data, asked in a process of its own. `problem` says why there is no answer.
    That process looks for modules in the current folder only if the config, overrides included, names one."""
    words = (config_path, *overrides)
    module, is_alone = "dist_train.commands.describe", not powers(config)
    return ask(Description, module, *words, timeout_s=_ANSWER_TIMEOUT_S, alone=is_alone)


def _lines(config: RunConfig, plan: LaunchPlan, facts: Description) -> Iterator[tuple[str, str]]:
    beginnings = {"none": "new", "auto": "goes on from its newest checkpoint"}
    yield "plan", _plan(config, plan)
    yield "batch", _batch(config, plan)
    of = f", of {config.eval.data.name}" if config.eval.data else ""
    samples = f"{_number(facts.train_samples)} train / {_number(facts.evaluation_samples)} evaluation samples"
    yield "data", f"{samples}{of}"
    for note in facts.notes:
        name, text = note.split(maxsplit=1)
        yield (name, text) if name in ("classes", "!") else ("", note)
    if facts.cache:
        yield "cache", holding_in_words(facts.cache)
    yield "steps", _steps(config, facts)
    yield "memory", _memory(facts)
    yield "saves", _saves(config, facts)
    yield "run", f"{plan.folder}  ({beginnings.get(str(plan.resume), f'begins from {plan.resume}')})"
    if facts.problem:
        yield "unknown", facts.problem


def _plan(config: RunConfig, plan: LaunchPlan) -> str:
    words = [f"{_count(plan.nodes, 'node')} × {_count(plan.ranks_per_node, 'rank')} = {plan.world_size}", plan.backend]
    words += [config.train.precision, *["channels_last"] * config.model.is_channels_last]
    return ", ".join(
        [*words, *["compiled"] * config.model.compile, f"{_count(plan.threads_per_rank, 'thread')} a rank"]
    )


def _batch(config: RunConfig, plan: LaunchPlan) -> str:
    size, parts = config.batch.global_size, plan.microbatches
    if config.batch.microbatches == "fit":
        return f"{size:,} = as few microbatches as fit into memory, {parts} at least: found before the first step"
    shares = {len(share(rank, plan.world_size, parts)) for rank in range(plan.world_size)}
    each = " or ".join(str(number) for number in sorted(shares))
    return f"{size:,} = {parts} microbatches of {size // parts}; {each} a rank"


def _steps(config: RunConfig, facts: Description) -> str:
    curve = f"; lr {sparkline(facts.lr)} up to {max(facts.lr):g}" if facts.lr else ""
    return f"{_number(facts.steps_per_epoch)} an epoch, {config.train.duration} = {_number(facts.total_steps)}{curve}"


def _memory(facts: Description) -> str:
    parameters, trained, state = facts.parameters, facts.trainable_parameters, facts.state_bytes
    if parameters is None or trained is None:
        return "unknown"
    optimizer = f", {size(max(0, state - 4 * parameters))} optimizer state" if state else ""
    weights, gradients = size(4 * parameters), size(4 * trained)
    return f"{quantity(parameters)} parameters: {weights} weights, {gradients} gradients{optimizer} a rank"


def _saves(config: RunConfig, facts: Description) -> str:
    state, saves, root = facts.state_bytes, config.checkpoint, Path(config.run_root).absolute()
    free = shutil.disk_usage(next(place for place in (root, *root.parents) if place.is_dir())).free
    needs = f", {size(state)} each, needs {size(state * (saves.keep + 1))}" if state else ""
    return f"every {saves.every}, {saves.keep} kept + best{needs}, {size(free)} free in {config.run_root}/"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def quantity(count: float) -> str:
    """`25.6 M`."""
    unit, factor = ("M", 1e6) if count >= 1e6 else ("k", 1e3)
    return f"{count / factor:.3g} {unit}"


def sparkline(values: list[float], width: int = 24) -> str:
    """A curve from 0 to its highest value in `width` characters."""
    points = [values[position * (len(values) - 1) // max(1, width - 1)] for position in range(min(width, len(values)))]
    top = max(points) or 1.0
    return "".join(_BARS[min(7, round(7 * max(0.0, point) / top))] for point in points)
