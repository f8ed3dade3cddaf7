"""The user's own components: found by `package.module:Thing`, built with the config's args."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dist_train.config.imports import resolve
from dist_train.config.schema import Custom
from dist_train.errors import UserError


def construct(config: Custom, kind: str, *positional: Any, offered: Mapping[str, Any], **required: Any) -> Any:
    """Calls what `config.name` names.

    Args:
        config: name and args; an argument that the user gives beats one that is offered.
        kind: the config's section, such as "model", for messages.
        positional: handed on.
        offered: keyword arguments handed on only where the signature asks for them by name.
        required: keyword arguments handed on always.

    Raises:
        UserError: when it cannot be imported, or does not take these arguments.
    """
    thing = resolve(config.name, kind)
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
