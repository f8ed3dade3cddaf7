"""The files of an image folder, class by class, and notes on the files that are not used."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dist_train.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_SPLITS = {
    "train": {"train", "training"},
    "eval": {"val", "valid", "validation", "eval", "evaluation", "dev"},
    "test": {"test"},
}
_Identity = tuple[int, int]
"""Device and inode of a folder: the same under every name."""


class ClassFolders:
    """The classes under `folder`, and their images; `notes` are lines for the user on what is skipped or doubled, and
    `counts` how many images each class has.

    Args:
        classes: the known ones; without them, the folders' names.

    Raises:
        UserError: when a folder can't be read, is of no known class, or has no image in it.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None = None) -> None:
        self.folder = folder
        names = subfolders(folder)
        self.classes = tuple(names if classes is None else classes)
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        self.counts = [0] * len(self.classes)
        self.paths: list[bytes] = []
        self.targets: list[int] = []
        self._other_kinds: Counter[str] = Counter()
        self._hidden: list[str] = []
        self._twins: list[str] = []
        self._loops: list[str] = []
        self._again: list[str] = []
        self._seen: dict[_Identity, str] = {}
        for name in names:
            self._add(folder / name)

    def _add(self, place: Path) -> None:
        if place.name not in self._numbers:
            more = f" and {len(self.classes) - 10} more" if len(self.classes) > 10 else ""
            known = ", ".join(self.classes[:10]) + more
            raise DataError(f"{place} is no class of the training set: {known}")
        before = self._other_kinds.copy()
        found = sorted(self._images_under(place))
        if not found:
            others = self._other_kinds - before
            held = f"; it holds others ({_kinds(others)})" if others else ""
            raise DataError(f"class folder {place} has no image ({' '.join(EXTENSIONS)}){held}")
        self.paths += found
        self.targets += [self._numbers[place.name]] * len(found)
        self.counts[self._numbers[place.name]] = len(found)

    def _images_under(self, folder: Path) -> Iterator[bytes]:
        """Images at any depth, also behind links, but never in a circle of links."""

        def refuse(error: OSError) -> None:
            raise DataError(f"cannot read the image folder {error.filename}: {error.strerror}")

        real = self.folder.resolve()
        above = {str(self.folder): frozenset(map(_identity, (real, *real.parents)))}
        for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            own = _identity(parent)
            if own in above[os.path.dirname(parent)]:
                self._loops.append(f"{parent} leads back to a folder that it is in: left out")
                folders.clear()
                continue
            above[parent] = above[os.path.dirname(parent)] | {own}
            if (first := self._seen.setdefault(own, parent)) != parent:
                self._again.append(f"{parent} is {first} once more: its images are there twice")
            folders.sort()
            yield from (os.fsencode(os.path.join(parent, name)) for name in self._read(parent, sorted(names)))

    def _read(self, parent: str, names: list[str]) -> Iterator[str]:
        stems: dict[str, str] = {}
        for name in names:
            stem, ending = os.path.splitext(name)
            if not name.lower().endswith(EXTENSIONS):
                if not name.startswith("."):
                    self._other_kinds[ending.lower() or "no ending"] += 1
            elif name.startswith("."):
                self._hidden.append(os.path.join(parent, name))
            else:
                if (first := stems.setdefault(stem, name)) != name:
                    self._twins.append(f"{os.path.join(parent, first)} and {name}")
                yield name

    @property
    def notes(self) -> tuple[str, ...]:
        under, lines = f"under {self.folder}", []
        if len(self.classes) == 1 and (inner := _folders_in(only := self.folder / self.classes[0])):
            lines.append(f"! the only class has folders in it ({_first(inner)}): if these are the classes, name {only}")
        if total := self._other_kinds.total():
            lines.append(f"{_are(total, 'file', under)} of no kind that is read ({_kinds(self._other_kinds)})")
        if loose := _images_in(self.folder):
            directly = f"directly in {self.folder}, in no class's folder,"
            lines.append(f"{_are(loose, 'image', directly)} not read")
        if self._hidden:
            first = _first(self._hidden)
            lines.append(f"{_are(len(self._hidden), 'file', under)} hidden, and so not read ({first})")
        if self._twins:
            pairs, images = _first(self._twins), _count(len(self._twins), "image")
            lines.append(f"{images} {under} may be there twice, by another ending: {pairs}")
        return (*lines, *self._loops, *self._again, *_alike(self.classes))


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted. Raises UserError when there are none."""
    try:
        names = _folders_in(folder)
    except OSError as error:
        said = f"cannot read the image folder {folder.absolute()}: {error.strerror}"
        said += ": images that a file lists need a data set of your own (docs/bring-your-own.md)" * folder.is_file()
        raise DataError(said) from error
    if not names:
        raise DataError(f"{folder.absolute()} has no folder in it: one for each class is needed")
    return names


def _folders_in(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def splits_as_classes(root: Path) -> tuple[str, ...]:
    """A line for the user where classes under `root` have the names of splits.

    Raises:
        UserError: when they must be splits: all have such names, and folders in them.
    """
    classes = subfolders(root)
    kinds = {kind: [name for name in classes if name.lower() in known] for kind, known in _SPLITS.items()}
    named = [name for names in kinds.values() for name in names]
    if not kinds["train"] or len(named) < 2:
        return ()
    keys = [f"data.{kind}={names[0]}" for kind, names in kinds.items() if names]
    keys += ["data.eval_fraction=null"] if kinds["eval"] else []
    advice = f"for these as splits set {' '.join(keys)}"
    if len(named) == len(classes) and all(_folders_in(root / name) for name in classes):
        raise DataError(f"{root}: the classes would be {_and(named)}, which have folders in them: {advice}")
    return (f"{'the' if len(named) == len(classes) else 'among the'} classes are {_and(named)}: {advice}",)


def _alike(classes: Sequence[str]) -> Iterator[str]:
    """Lines about classes that are probably the same one."""
    first: dict[str, str] = {}
    for name in classes:
        if (other := first.setdefault(name.strip().casefold(), name)) != name:
            yield f"the classes {other!r} and {name!r} differ in upper and lower case alone"


def _images_in(folder: Path) -> int:
    names = [e.name for e in os.scandir(folder) if e.name[0] != "." and e.is_file()]
    return sum(name.lower().endswith(EXTENSIONS) for name in names)


def _identity(place: str | Path) -> _Identity:
    found = os.stat(place)
    return found.st_dev, found.st_ino


def _kinds(counts: Counter[str]) -> str:
    """`.heic 15, .txt 2`."""
    kinds = ", ".join(f"{ending} {count}" for ending, count in counts.most_common(5))
    return kinds + ", …" * (len(counts) > 5)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}"


def _are(number: int, what: str, where: str) -> str:
    """`3 files under birds are`."""
    return f"{_count(number, what)} {where} {'are' if number > 1 else 'is'}"


def _first(names: Sequence[str]) -> str:
    return names[0] + ", …" * (len(names) > 1)


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
