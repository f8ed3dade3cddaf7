"""The schema as JSON Schema: for editors (configs/schema.json), for error messages and for docs/config.md."""

import ast
import inspect
import json
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from dist_train.config import schema
from dist_train.config.schema import RunConfig
from dist_train.config.types import Duration

_STANDARD_WORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""pydantic names a bound behind a validator function in its own words, which editors do not know."""
_EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    "description": "Files to begin from, relative to this one; what stands here goes on top.",
}


_ID = "urn:dist-train:config"
"""A name and no address: editors are told where the file lies."""


class _Generator(GenerateJsonSchema):
    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Duration) else super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def schema_document() -> dict[str, Any]:
    """The JSON Schema of a resolved RunConfig, in standard words; only texts with a pattern have titles. Do not modify
    the result."""
    _describe_fields()
    return _tidy(RunConfig.model_json_schema(schema_generator=_Generator))


def _describe_fields() -> None:
    """Gives each field the text below it in schema.py. pydantic would (`use_attribute_docstrings`), in every process
    that reads a config, which takes a third of the schema's import; few need the texts."""
    texts: dict[str, dict[str, str]] = {}
    for section in ast.parse(inspect.getsource(schema)).body:
        if isinstance(section, ast.ClassDef):
            texts[section.name] = {
                field.target.id: inspect.cleandoc(str(text.value.value))
                for field, text in pairwise(section.body)
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            }
    for model in (getattr(schema, name) for name in texts):
        if issubclass(model, schema.Section):
            for name, field in model.model_fields.items():
                owner = next(kind.__name__ for kind in model.__mro__ if name in vars(kind).get("__annotations__", {}))
                field.description = texts[owner].get(name)
            model.model_rebuild(force=True)


def _tidy(node: Any) -> Any:
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {
        _STANDARD_WORDS.get(key, key): _tidy(value)
        for key, value in node.items()
        if not (key == "title" and node.get("type") == "object") and not (key == "lt" and value == 2**63)
    }
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    if "oneOf" in tidy:  # a section without its name is legal where a parent file or a default names it
        tidy["anyOf"] = tidy.pop("oneOf")
        tidy.pop("discriminator", None)
    return tidy


def json_schema() -> str:
    """The text of configs/schema.json: what an editor may complete and check in a config file, `extends` included."""
    schema = dict(schema_document())
    schema.pop("required", None)  # a file may get its data and model from the one it extends
    schema["$defs"] = {key: _without_name(node) for key, node in schema["$defs"].items()}
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": _ID, "title": "dist-train run"}
    return json.dumps({**head, **schema}, indent=2, ensure_ascii=False) + "\n"


def _without_name(node: dict[str, Any]) -> dict[str, Any]:
    """The same section, whose name may stand in the file that this one extends."""
    return {**node, "required": [key for key in node["required"] if key != "name"]} if "required" in node else node
