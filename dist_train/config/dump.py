"""The resolved config as YAML: readable, complete, and read back to the same object."""

import math
import re
from typing import Any

import yaml
from yaml.resolver import Resolver

from dist_train.config.schema import RunConfig
from dist_train.config.yaml12 import CoreComposer


class _Dumper(yaml.SafeDumper):
    """Writes YAML that a YAML 1.2 reader reads back unchanged.

    Text that YAML 1.1 would read as something else is quoted too, for other readers.
    """

    yaml_implicit_resolvers = {
        first: [*CoreComposer.yaml_implicit_resolvers.get(first, []), *Resolver.yaml_implicit_resolvers.get(first, [])]
        for first in {*CoreComposer.yaml_implicit_resolvers, *Resolver.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list(dumper: _Dumper, values: list[Any]) -> yaml.Node:
    """A list of plain values on one line, a list of sections on several."""
    plain = not any(isinstance(value, (list, dict)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


def _number(dumper: _Dumper, value: float) -> yaml.Node:
    text = repr(value) if math.isfinite(value) else {"inf": ".inf", "-inf": "-.inf"}.get(repr(value), ".nan")
    if re.fullmatch(r"-?[0-9]+e.*", text):
        text = text.replace("e", ".0e")  # 1e-05 is a number in YAML 1.2, but text in YAML 1.1
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(float, _number)


def to_yaml(config: RunConfig) -> str:
    """All keys of the config, in the order of the schema, a component's name first; `source.load` reads an
    equal config from it."""
    return yaml.dump(_names_first(config.model_dump()), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _names_first(value: Any) -> Any:
    if isinstance(value, list):
        return [_names_first(item) for item in value]
    if not isinstance(value, dict):
        return value
    ordered = {"name": value["name"], **value} if "name" in value else value
    return {key: _names_first(item) for key, item in ordered.items()}
