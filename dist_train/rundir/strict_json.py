"""JSON as its standard has it, which knows no NaN and no infinities. Python writes them as words that others refuse."""

import json
import math
from typing import Any

_TAG = "float"


def to_json(value: Any, **layout: Any) -> str:
    """For readers of all kinds: what JSON has no number for is "nan", "inf" or "-inf"; floats come back bit for bit."""
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_spelled(value, repr), allow_nan=False, **layout)


def tagged(value: Any) -> Any:
    """For ourselves: {"float": "nan"}, which `untagged` reads back."""
    return _spelled(value, lambda number: {_TAG: repr(number)})


def untagged(value: Any) -> Any:
    """What was given to `tagged`."""
    if isinstance(value, dict):
        if list(value) == [_TAG] and value[_TAG] in ("nan", "inf", "-inf"):
            return float(value[_TAG])
        return {key: untagged(item) for key, item in value.items()}
    return [untagged(item) for item in value] if isinstance(value, list) else value


def _spelled(value: Any, spell: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return spell(float(value))
    if isinstance(value, dict):
        return {key: _spelled(item, spell) for key, item in value.items()}
    return [_spelled(item, spell) for item in value] if isinstance(value, list | tuple) else value
