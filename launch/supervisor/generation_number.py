"""The number of a generation: all nodes of a start come to the same one without asking each other."""

import time
from contextlib import suppress
from dataclasses import asdict

from dist_train.rundir.codec import read_json, write_new
from dist_train.rundir.layout import GenerationDir, RunDir
from dist_train.rundir.records import NodeRecord

_WRITING_S = 2.0
"""Seconds that another node has to write the name of the start that it has claimed a number for."""


def claim(run: RunDir, node: str, start: str | None, record: NodeRecord) -> GenerationDir:
    """The folder of the next generation, with `record` of this node in it.

    Args:
        node: name of this node in it.
        start: a name that the start has on all its nodes and never again. Without one each node counts its own
            generations, which gives the same number while the number of nodes does not change.
    """
    taken = [generation.number for generation in run.all_generations() if generation.node(node).exists()]
    number = max(taken, default=0) + 1 if start is None else _number_of(run, start)
    while True:
        folder = run.generation(number)
        folder.make()
        try:
            write_new(folder.node(node), asdict(record))
            return folder
        except FileExistsError:  # another launcher on this host took it, which does not know its node's number either
            if start is not None:
                raise
            number += 1


def _number_of(run: RunDir, start: str) -> int:
    """The number that carries the start's name; the first node to come writes it there."""
    while True:
        generations = run.all_generations()
        # `used` is read before the names. If another node takes a number in between, its name is found below, or
        # write_new refuses and we look again.
        used = [one.number for one in generations if one.start.exists() or any(one.nodes.glob("*.json"))]
        for generation in generations:
            if _name_of(generation) == start:
                return generation.number
        generation = run.generation(max(used, default=0) + 1)
        generation.path.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another node was faster: with our name, most likely
            write_new(generation.start, start)
            return generation.number


def _name_of(generation: GenerationDir) -> str | None:
    deadline = time.monotonic() + _WRITING_S
    while (name := read_json(generation.start)) is None and generation.start.exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # it is being written
    return name
