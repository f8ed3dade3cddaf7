"""`dist-train cache`: the decoded images that a config's data keeps. Nothing of the user's own code is imported."""

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dist_train.commands.common import reporting
from dist_train.config.problems import printable
from dist_train.config.recorded import read_recorded
from dist_train.config.requests import CacheRequest, read_request
from dist_train.config.schema import ImageCache, RunConfig
from dist_train.config.source import load
from dist_train.config.stdout import aligned, tell
from dist_train.data import datasets
from dist_train.data.cache.survey import Part, fill, holding, parts, verify
from dist_train.data.datasets import Splits
from dist_train.errors import ExitCode, UserError
from dist_train.report.words import seconds, size
from dist_train.rundir.files import remove_tree

_WRONG = 1
"""Exit code where images are missing, damaged or changed."""
_EVERY_S = 2.0
"""Between two lines of progress."""


def main(request: CacheRequest) -> int:
    """Returns the exit code."""
    torch.set_num_threads(1)
    with reporting():
        try:
            return _answer(request)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED


def _answer(request: CacheRequest) -> int:
    found = parts(_splits(_config(request)))
    code: int = ExitCode.DONE
    more: list[dict[str, Any]] = [{} for _ in found]
    if request.action == "drop":
        print(f"{size(sum(part.kept.taken for part in found))} deleted", file=sys.stderr)
        for part in found:
            remove_tree(part.kept.folder)
    elif request.action == "build":
        code = _build(found)
    elif request.action == "verify":
        more = [verify(part) for part in found]
        code = _WRONG if any(one["damaged"] + one["changed"] for one in more) else ExitCode.DONE
    shown = [{**holding(part), **own} for part, own in zip(found, more, strict=True)]
    if request.as_json:
        tell(json.dumps({"images": sum(map(len, found)), "parts": shown}, indent=2))
    else:
        tell(_table(shown))
    return code


def _config(request: CacheRequest) -> RunConfig:
    path = Path(request.target)
    return read_recorded(path, request.overrides).config if path.is_dir() else load(request.target, request.overrides)


def _splits(config: RunConfig) -> Splits:
    """The data that has a cache.

    Raises:
        UserError: (exit 2) where there is none.
    """
    own, other = (isinstance(getattr(data, "cache", None), ImageCache) for data in (config.data, config.eval.data))
    if not own and not other:
        raise UserError(
            "data.cache is off: data.cache=disk keeps decoded images of an image_folder, of shards without decode, "
            "and of a huggingface column"
        )
    splits = datasets.build(config.data)
    if config.eval.data is None:
        return splits
    if not other:
        return replace(splits, evaluation=None, test=None)
    return replace(datasets.build_evaluated(config.eval.data, splits.saved, nullcontext), train=splits.train)


def _build(found: list[Part]) -> int:
    broken: list[str] = []
    begun = last = time.monotonic()
    done, whole = 0, sum(map(len, found))
    for part in found:
        for count in fill(part, broken.append):
            done, now = done + count, time.monotonic()
            if now - last > _EVERY_S or done == whole:
                rate, last = done / (now - begun), now
                left = seconds((whole - done) / rate)
                print(f"{done:,} of {whole:,} images, {rate:,.0f}/s, {left} left", file=sys.stderr)
    for line in broken[:10]:
        print(f"! {printable(line, 300)}", file=sys.stderr)
    if broken:
        print(f"{len(broken):,} images cannot be read", file=sys.stderr)
        return ExitCode.DATA
    return ExitCode.DONE if all(one["there"] == one["images"] for one in map(holding, found)) else _WRONG


def _table(shown: list[dict[str, Any]]) -> str:
    rows = []
    for one in shown:
        states = ", ".join(
            f"{one[name]:,} {name}" for name in ("sound", "damaged", "changed", "missing") if one.get(name)
        )
        share = f"{100 * one['there'] / max(1, one['images']):.0f} %"
        numbers = (f"{one['there']:,}", f"{one['images']:,}", share, size(one["bytes"]))
        rows.append((" ".join(one["splits"]), one["form"], *numbers, states, one["folder"]))
    head = ("of", "form", "there", "images", "share", "size", "state" if any(row[6] for row in rows) else "", "folder")
    return aligned([head, *rows], to_the_right=("there", "images", "share", "size"))


if __name__ == "__main__":
    sys.exit(main(read_request(CacheRequest, sys.argv[1:])))
