"""Turns pydantic's errors into what the user wrote, where, and what is allowed there."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from dist_train.config import shape
from dist_train.config.problems import Problem, did_you_mean, nearest, shown
from dist_train.config.tree import KeyPath, Location, Tree, problem_at

_OTHER_NAMES = {
    "epochs": "train.duration", "max_epochs": "train.duration", "num_epochs": "train.duration",
    "steps": "train.duration", "max_steps": "train.duration",
    "batch_size": "batch.global_size", "global_batch_size": "batch.global_size",
    "accumulate_grad_batches": "batch.microbatches", "gradient_accumulation_steps": "batch.microbatches",
    "num_workers": "loader.workers", "learning_rate": "optimizer.lr", "dataset": "data", "scheduler": "schedule",
    "lr_scheduler": "schedule", "criterion": "task", "loss": "task", "transforms": "augment", "augmentation": "augment",
    "warmup_epochs": "schedule.warmup", "warmup_steps": "schedule.warmup", "gradient_clip_val": "train.clip_norm",
    "grad_clip": "train.clip_norm", "amp": "train.precision", "num_classes": "nothing: the data tells",
}  # fmt: skip
"""Names that other trainers use."""
_OFF = {"tracking.wandb": "{mode: disabled}", "tracking.texts": "{count: 0}", "schedule": "{name: constant}"}
_OFF |= {"augment": "[]", "callbacks": "[]"}
"""What switches something off that null, false or 0 does not."""


def explain_errors(error: ValidationError, tree: Tree) -> list[Problem]:
    """The problems of a config, one for each key path.

    Args:
        tree: what was validated, with the places of all keys.
    """
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        for problem in _problems(item, tree):
            found.setdefault(problem.key, problem)
    return list(found.values())


def _problems(item: Any, tree: Tree) -> Iterator[Problem]:
    if item["type"] == "contradiction":
        for key, message in item["ctx"]["problems"]:
            path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
            yield problem_at(_value_place(tree, path), path, message)
        return
    path, section, node = _walk(item["loc"], tree)
    kind = item["type"]
    if kind == "extra_forbidden":
        yield problem_at(_key_place(tree, path), path, _unknown_key(path, section, tree))
    elif kind == "missing":
        names = f", {shape.choices(node)}" if shape.is_component_node(node) else ""
        yield problem_at(_key_place(tree, path[:-1]), path, f"is missing: {shape.in_words(node)}{names}")
    elif shape.is_component_node(node):
        yield _component_problem(path, node, tree)
    else:
        yield problem_at(_value_place(tree, path), path, _wrong_value(item, path, node, tree))


def _walk(location: tuple[str | int, ...], tree: Tree) -> tuple[KeyPath, shape.Node, shape.Node]:
    """The key path of pydantic's `loc`, which also names members of unions, with the schemas of the last key's section
    and of the key itself."""
    path: list[str | int] = []
    section = node = shape.root()
    at: Tree | None = tree
    steps = iter(location)
    for step in steps:
        option = shape.options(node)[0]
        if shape.is_component_node(node):  # this step is the tag of a union
            option = shape.chosen(node, at.plain() if at else None) or option
            step = next(steps, None)  # type: ignore[assignment]
            if step is None:
                return tuple(path), section, option
        if option.get("type") not in ("object", "array"):
            break  # the step names a member of a union of plain values
        section = option
        node = option.get("items") or shape.keys(option).get(str(step)) or {}
        path.append(step)
        at = at.child(step) if at else None
    return tuple(path), section, node


def _key_place(tree: Tree, path: KeyPath) -> Location:
    """The location of the key, or of the nearest one above it."""
    at = tree.at(path)
    return at.key_place if at else _key_place(tree, path[:-1])


def _value_place(tree: Tree, path: KeyPath) -> Location:
    """The location of the value; for a section, that of its key."""
    at = tree.at(path)
    return at.place if at and not isinstance(at.value, dict) else _key_place(tree, path)


def _unknown_key(path: KeyPath, section: shape.Node, tree: Tree) -> str:
    """`unknown key for optimizer sgd. Did you mean lr? (lr, momentum, …)`."""
    key, known, of = str(path[-1]), list(shape.keys(section)), ""
    if above := path[:-1]:
        known = [name for name in known if name != "name"]  # it has one, or its keys would not be known
        name = tree.at((*above, "name"))
        of = f" for {'.'.join(map(str, above))}"
        of += f" {name.value}" if name and isinstance(name.value, str) else ""
    has = ", ".join(known) or f"this {path[0]} has no keys"
    return f"unknown key{of}{_where_it_belongs(key, path, known)} ({has})"


def _where_it_belongs(key: str, path: KeyPath, known: list[str]) -> str:
    places = [place for place in shape.key_paths() if place.rpartition(".")[2] == key]
    if f"{path[0]}.{key}" in places and len(path) == 2:
        return f"; it belongs to {', '.join(_owners(str(path[0]), key))}"
    elsewhere = _OTHER_NAMES.get(key.lower())
    if elsewhere is None and nearest(key, known):
        return did_you_mean(key, known)
    elsewhere = elsewhere or (places[0] if len(places) == 1 else None)
    return f"; here that is {elsewhere}" if elsewhere else ""


def _owners(section: str, key: str) -> Iterator[str]:
    """The components of a section that have `key`."""
    for option in shape.options(shape.keys(shape.root())[section]):
        names = shape.names_of(option)
        if key in shape.keys(option):
            yield names[0] if len(names) == 1 else "torchvision's models" if names else "your own"


def _component_problem(path: KeyPath, node: shape.Node, tree: Tree) -> Problem:
    at, name = tree.at(path), tree.at((*path, "name"))
    kind, choices = "augmentation" if path[0] == "augment" else str(path[0]), shape.choices(node)
    if at is None or not isinstance(at.value, dict):
        given = at.plain() if at else None
        hint = given if isinstance(given, str) and given.isidentifier() else "…"
        message = f"must be a section with a name, such as {{name: {hint}}}, not {shown(given)}"
        return problem_at(_value_place(tree, path), path, message + _off(given, path, node))
    if name is None:
        return problem_at(_key_place(tree, path), (*path, "name"), f"is missing: {choices}")
    near = did_you_mean(name.value, shape.component_names(node)) if isinstance(name.value, str) else ""
    message = f"unknown {kind} {shown(name.plain())}{near} ({choices})"
    return problem_at(_value_place(tree, (*path, "name")), (*path, "name"), message)


def _wrong_value(item: Any, path: KeyPath, node: shape.Node, tree: Tree) -> str:
    at = tree.at(path)
    value = at.plain() if at else item["input"]
    if item["type"] in ("rule", "value"):  # of our own checks
        return f"{item['msg']}, not {shown(value)}" if item["type"] == "value" else item["msg"]
    if item["type"] == "less_than" and item["ctx"]["lt"] == 2**63:
        return f"must be below 2^63, not {shown(value)}"
    if not node:
        return f"{item['msg'][:1].lower()}{item['msg'][1:]}, not {shown(value)}"
    near = did_you_mean(value, _fixed_values(node)) if isinstance(value, str) else ""
    return f"must be {shape.in_words(node)}, not {shown(value)}{near or _hint(value, node) or _off(value, path, node)}"


def _fixed_values(node: shape.Node) -> list[str]:
    return [str(value) for option in shape.options(node) for value in option.get("enum", [option.get("const", "")])]


def _hint(value: Any, node: shape.Node) -> str:
    """What to do if a value only has the wrong type."""
    kinds = {option.get("type") for option in shape.options(node)}
    if isinstance(value, str) and "boolean" in kinds:
        is_old = value.lower() in ("on", "off", "yes", "no", "y", "n")
        return " (on, off, yes and no are text in YAML 1.2)" if is_old else " (without quotes)"
    if isinstance(value, str) and kinds & {"integer", "number"}:
        return " (without quotes or separators)" if _is_number(value) else ""
    if kinds == {"string"} and isinstance(value, (int, float)) and not any(_fixed_values(node)):
        return " (put it in quotes)"
    return ""


def _off(value: Any, path: KeyPath, node: shape.Node) -> str:
    """How to switch off what somebody gave nothing."""
    if value not in (None, 0, "disabled", "none"):  # 0 is false, too
        return ""
    if off := _OFF.get(".".join(map(str, path)), "null" if shape.may_be_null(node) else ""):
        return f" (to switch it off: {off})"
    return " (for the default, leave it out)" * (value is None and "default" in node)


def _is_number(text: str) -> bool:
    try:
        float(text.replace("_", "").replace(",", ""))
    except ValueError:
        return False
    return True
