"""Whether data means the same as that of a training: a model would take other data for what it is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from dist_train.config.problems import printable
from dist_train.errors import DataError

_SIZES = {
    "shape": "inputs of the shape {}, and those of the training have {}",
    "outputs": "{} numbers in a target, and that of the training has {}",
    "vocabulary": "{} tokens, and that of the training has {}",
}
_MEANING = {
    "scaling": "another mean or deviation in its training split than the data of the training had",
    "tokenizer": "other tokens than the data of the training had",
}


def check_alike(name: str, found: Mapping[str, Any], trained: Mapping[str, Any], *, sizes: bool) -> None:
    """Compares what two `Splits.saved` say, of which one may come from a checkpoint.

    Args:
        name: of the data, for the message.
        sizes: whether those count, too, where both are known.

    Raises:
        UserError: (exit 13) when they differ.
    """
    said = _classes(trained.get("classes"), found.get("classes"))
    for what, words in _MEANING.items():
        if said is None and trained.get(what) != found.get(what):
            said = words
    for what, words in _SIZES.items() if sizes else ():
        before, now = _plain(trained.get(what)), _plain(found.get(what))
        if said is None and before != now and before is not None and now is not None:
            said = words.format(now, before)
    if said is not None:
        raise DataError(f"this {name} has {said}: give data like that of the training")


def _classes(trained: Sequence[str] | None, found: Sequence[str] | None) -> str | None:
    """How they differ: class numbers would mean something else."""
    if trained is None or found is None or list(trained) == list(found):
        return None
    place = next((k for k, (one, two) in enumerate(zip(trained, found, strict=False)) if one != two), None)
    if place is None:
        return f"{len(found)} classes, and the model was trained for {len(trained)}"
    return f"{printable(found[place])} for class {place}, which was {printable(trained[place])} in training"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
