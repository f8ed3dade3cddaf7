"""The user's own components: `package.module:Thing` in a config, imported at run time and built with its args."""

import difflib
import functools
import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from dist_train.config.problems import did_you_mean, printable
from dist_train.config.schema import Custom
from dist_train.errors import UserError

_FORBIDDEN = {"builtins", "__main__", *sys.stdlib_module_names}


def construct(config: Custom, kind: str, *positional: Any, offered: Mapping[str, Any], **required: Any) -> Any:
    """Calls what `config.name` names.

    Args:
        config: name and args; an argument that the user gives beats one that is offered.
        kind: the config's section, such as "model", for messages.
        positional: passed on.
        offered: keyword arguments passed on only if the signature has parameters of these names.
        required: keyword arguments that are always passed on.

    Raises:
        UserError: when it cannot be imported, or does not take these arguments.
    """
    thing = resolve_import(config.name, kind)
    keywords = {**_asked_for(thing, offered), **required, **config.args}
    try:
        inspect.signature(thing).bind(*positional, **keywords)
    except TypeError as error:
        raise UserError(f"{kind} {config.name}{_signature(thing)} cannot be called so: {error}") from None
    except ValueError:  # code in C may have no signature; the call itself will tell
        pass
    return thing(*positional, **keywords)


def _asked_for(thing: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    try:
        names = inspect.signature(thing).parameters
    except ValueError:
        return {}
    return {name: value for name, value in offered.items() if name in names}


def _signature(thing: Callable[..., Any]) -> str:
    """The parameters by name and default; annotations would hide them."""
    parameters = inspect.signature(thing).parameters.values()
    return "(" + ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters) + ")"


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
    _refuse(module_name, asked)
    thing: Any = _module(module_name, asked)
    for name in attribute.split("."):
        thing = _attribute(thing, name, asked)
    _check(thing, asked)
    return thing


def _refuse(module_name: str, asked: str) -> None:
    top = module_name.partition(".")[0]
    if top in _FORBIDDEN:
        raise UserError(
            f"{asked}: {top} is part of Python itself, which no config may use; rename your module if it is yours"
        )


def _module(name: str, asked: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"{asked}: {_not_found(name, error.name)}") from None
        raise UserError(f"{asked}: {_failed(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{asked}: {_failed(error)}") from error


def _not_found(name: str, missing: str) -> str:
    parent = sys.modules.get(missing.rpartition(".")[0])
    folders = list(getattr(parent, "__path__", [])) or [str(Path.cwd())]
    near = did_you_mean(missing.rpartition(".")[2], (module.name for module in pkgutil.iter_modules(folders)))
    of = f", which {name} needs," if missing != name else ""
    return f"no module {missing}{of} in {folders[0]} or among the installed packages{near}"


def _failed(error: BaseException) -> str:
    """`importing it fails at data/birds.py:3: NameError: …`, with the place in the user's own file."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
        said = f"{type(error).__name__}: {error.msg}"
    else:
        place = _place(error.__traceback__)
    return f"importing it fails at {place}: {printable(said, 300)}"


def _place(trace: TracebackType | None) -> str:
    frames = [frame for frame in traceback.extract_tb(trace) if not _is_machinery(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "its first line"


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)


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
