"""The user's own components: `package.module:Thing` in a config, imported at run time and built with its args."""

import difflib
import functools
import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dist_train.config.problems import did_you_mean, printable
from dist_train.config.schema import Custom, is_component
from dist_train.errors import UserError

_MACHINERY = (__file__, importlib.__file__)
_FORBIDDEN = {"builtins", "__main__", *sys.stdlib_module_names}


def construct(config: Custom, kind: str, *positional: Any, offered: Mapping[str, Any], **required: Any) -> Any:
    """Calls what `config.name` names.

    Args:
        config: name and args; an argument that the user gives beats one that is offered. An argument that is itself
            a name with args, as a model of transformers has it for its config, is built first.
        kind: the config's section, such as "model", for messages.
        positional: passed on.
        offered: keyword arguments passed on only if the signature has parameters of these names.
        required: keyword arguments that are always passed on.

    Raises:
        UserError: when it cannot be imported, or does not take these arguments.
    """
    thing = resolve_import(config.name, kind)
    keywords = {**required, **{name: _built(value, f"{kind}.args.{name}") for name, value in config.args.items()}}
    try:
        signature = inspect.signature(thing)
    except ValueError:  # code in C may have no signature; the call itself will tell
        return thing(*positional, **keywords)
    keywords = {name: value for name, value in offered.items() if name in signature.parameters} | keywords
    try:
        return thing(*positional, **keywords)
    except TypeError:
        if (misfit := _misfit(signature, positional, keywords)) is None:
            raise
        # By name and default: annotations would hide them.
        taken = (str(p.replace(annotation=inspect.Parameter.empty)) for p in signature.parameters.values())
        called = f"{kind} {config.name}({printable(', '.join(taken), 1000)})"
        raise UserError(f"{called} cannot be called so: {misfit}") from None


def _misfit(signature: inspect.Signature, positional: tuple[Any, ...], keywords: dict[str, Any]) -> TypeError | None:
    """What is wrong with the arguments. A decorator may take more than it shows, as those of transformers' configs do,
    so the call itself comes first."""
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        return error
    return None


def _built(value: Any, kind: str) -> Any:
    """An argument as the component gets it."""
    if is_component(value):
        return construct(Custom.model_validate(value), kind, offered={})
    if isinstance(value, dict):
        return {name: _built(inner, f"{kind}.{name}") for name, inner in value.items()}
    return [_built(inner, kind) for inner in value] if isinstance(value, list) else value


def resolve_import(path: str, what: str) -> Any:
    """The class or function that `path`, `package.module:Thing`, names. sys.path is not changed.

    Python's standard library is refused, under whatever name it is reached: a config builds models and data sets, it
    does not call `os.system`.

    Args:
        what: what it is for, such as `model`, for the message.

    Raises:
        UserError: when there is no such thing, when importing it fails, or when it may not be used.
    """
    asked = f"{what} {printable(path, 120)}"
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{asked}: it is written package.module:Thing")
    top = module_name.partition(".")[0]
    if top in _FORBIDDEN:
        raise UserError(
            f"{asked}: {top} is part of Python itself, which no config may use; rename your module if it is yours"
        )
    thing: Any = _module(module_name, asked)
    for name in attribute.split("."):
        thing = _attribute(thing, name, asked)
    _check(thing, asked)
    return thing


def _module(name: str, asked: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise UserError(f"{asked}: {_not_found(name, missing)}") from None
        raise UserError(f"{asked}: {_failed(error)}") from error


def _not_found(name: str, missing: str) -> str:
    parent = sys.modules.get(missing.rpartition(".")[0])
    folders = list(getattr(parent, "__path__", [])) or [str(Path.cwd())]
    near = did_you_mean(missing.rpartition(".")[2], (module.name for module in pkgutil.iter_modules(folders)))
    of = f", which {name} needs," if missing != name else ""
    return f"no module {missing}{of} in {folders[0]} or among the installed packages{near}"


def _failed(error: BaseException) -> str:
    """`importing it fails at data/birds.py:3: NameError: …`, with the place in the user's own file."""
    trace = traceback.extract_tb(error.__traceback__)
    own = [f for f in trace if not f.filename.startswith("<frozen importlib") and f.filename not in _MACHINERY]
    place, said = f"{own[-1].filename}:{own[-1].lineno}" if own else "its first line", str(error)
    if isinstance(error, SyntaxError) and error.filename:
        place, said = f"{error.filename}:{error.lineno}", error.msg
    return f"importing it fails at {place}: {printable(f'{type(error).__name__}: {said}', 300)}"


def _attribute(thing: Any, name: str, asked: str) -> Any:
    owner = getattr(thing, "__name__", type(thing).__name__)
    if name.startswith("__"):
        raise UserError(f"{asked}: {name} is not for a config to use")
    try:
        return getattr(thing, name)
    except AttributeError:
        public = [other for other in dir(thing) if not other.startswith("_")]
        near = difflib.get_close_matches(name, public, n=3, cutoff=0.5) or public[:8]
        known = f"; it has {', '.join(near)}" if near else ""
        raise UserError(f"{asked}: {owner} has no {name}{known}") from None


def _check(thing: Any, asked: str) -> None:
    """Raises UserError if it cannot be called, or comes from Python's standard library under another name."""
    if isinstance(thing, ModuleType):
        raise UserError(f"{asked}: that is a module; name the class or function in it")
    while isinstance(thing, functools.partial):
        thing = thing.func
    home = getattr(thing, "__module__", None)
    home = home if isinstance(home, str) else type(thing).__module__
    if not callable(thing):
        raise UserError(f"{asked}: a {type(thing).__name__}, not a class or function")
    if home.partition(".")[0] in _FORBIDDEN - {"__main__"}:
        raise UserError(f"{asked}: it comes from {home}, a part of Python itself, which no config may use")
