"""Tables that Hugging Face's library `datasets` reads, as Arrow files that are mapped into memory: rows by columns."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.problems import alternatives, printable
from dist_train.config.schema import HuggingFaceData, ImageCache
from dist_train.data.cache.files import Stamp
from dist_train.data.cache.images import Origin, Room
from dist_train.data.datasets.base import Splits
from dist_train.data.datasets.custom import shape_of
from dist_train.data.datasets.decoded import DecodedImages, Kept, PartOf, fitted, kept_images
from dist_train.data.datasets.part import Part, split, whole
from dist_train.data.datasets.shards import expanded
from dist_train.data.decode import decode_bytes, decode_file, read_file
from dist_train.errors import DataError, UserError

FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
_SAVED = "state.json"
"""What Dataset.save_to_disk writes beside the Arrow files."""
_ENDS = 4096
"""First and last bytes of each file that go into a fingerprint."""
_LISTS = ("List", "LargeList", "Sequence", "Array2D", "Array3D", "Array4D", "Array5D")


class MappedTable:
    """Rows of some files, read from Arrow files that every process maps and none holds."""

    def __init__(self, data: Any, files: Sequence[Path], columns: Sequence[str], key: str) -> None:
        """
        Args:
            data: a datasets.Dataset.
            key: of the config, for messages.

        Raises:
            UserError: when a column is missing, or of a type that is not read.
        """
        known = ", ".join(data.column_names)
        if missing := [name for name in columns if name not in data.column_names]:
            raise DataError(f"{key}: {files[0]} has no column {missing[0]}: {known}")
        self.features = {name: data.features[name] for name in columns}
        for name, feature in self.features.items():
            if kind(feature) is None:
                raise DataError(f"{key}: the column {name} of {files[0]} holds {feature}, which is not read")
        if not len(data):
            raise DataError(f"{key}: {files[0]} has no rows")
        self._rows, self.files = data.with_format("arrow", columns=list(columns)), list(files)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, row: int, columns: Sequence[str]) -> list[Any]:
        """The values: images as they are stored, uint8 [3, h, w]; numbers, texts, and lists as int64 or float32.

        Raises:
            UserError: naming file and row, when there is none, or an image can't be read.
        """
        found = self._rows[row]
        return [self._value(row, name, found.column(name)[0]) for name in columns]

    def _value(self, row: int, name: str, scalar: Any) -> Any:
        value = None if not scalar.is_valid else scalar
        what = kind(self.features[name])
        if value is not None and what == "image":
            content = value.as_py()
            if content["bytes"] is not None:
                return decode_bytes(content["bytes"], lambda: self.name(row))
            return decode_file(content["path"])
        if value is not None and what == "list":
            value = _array(value)
        elif value is not None:
            return torch.tensor(value.as_py(), dtype=torch.float32) if what == "float" else value.as_py()
        if value is None or value.dtype == object:
            raise DataError(f"{self.name(row)}: the column {name} has no value, or lists of several lengths")
        return torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))

    def encoded(self, row: int, name: str) -> tuple[bytes | bytearray, Stamp]:
        """The bytes of an image as they are stored, and the stamp of their own file, or of all files of the table.

        Raises:
            UserError: when there are none.
        """
        scalar = self._rows[row].column(name)[0]
        content = scalar.as_py() if scalar.is_valid else {"bytes": b"", "path": None}
        if content["bytes"] is None:
            found, stamp = read_file(str(content["path"]))
            return found, Stamp(*stamp)
        if not scalar.is_valid:
            raise DataError(f"{self.name(row)}: the column {name} has no value")
        return content["bytes"], self.stamp

    @cached_property
    def stamp(self) -> Stamp:
        """Of all files together. Raises OSError."""
        found = [path.stat() for path in self.files]
        return Stamp(sum(one.st_size for one in found), max(one.st_mtime_ns for one in found))

    def name(self, row: int) -> str:
        """`birds.parquet, row 12`; rows are counted from 0 in each file."""
        first = 0
        for file in self.files:
            count = _rows_in(file)
            if row < first + count:
                return f"{file}, row {row - first:,}"
            first += count
        return f"{self.files[0]}, row {row:,} of all"

    def fingerprint(self) -> str:
        """Of the names, sizes, first and last bytes of all files, and of the columns."""
        found = hashlib.sha256(f"{len(self)} {self.features}".encode())
        for path in self.files:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                ends = file.read(_ENDS) + os.pread(file.fileno(), _ENDS, max(0, size - _ENDS))
            found.update(f"{path.name} {size}\n".encode(errors="surrogateescape") + ends)
        return found.hexdigest()[:12]


def kind(feature: Any) -> str | None:
    """What a column holds: image, class, int, float, text or list; None for what is not read."""
    name, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if name in ("Image", "ClassLabel"):
        return {"Image": "image", "ClassLabel": "class"}[name]
    if name in _LISTS:
        inner = getattr(feature, "feature", feature)
        return "list" if name.startswith("Array") or kind(inner) in ("int", "float", "list", "class") else None
    if name != "Value":
        return None
    kinds = {"int": "int", "uint": "int", "bool": "int", "float": "float", "string": "text", "large_string": "text"}
    return kinds.get(dtype.rstrip("0123456789"))


def _array(scalar: Any) -> np.ndarray:
    """A list, or a list of lists, as an array; of objects where it has gaps, or lengths that differ."""
    flat = getattr(scalar, "values", None)
    if flat is not None and flat.null_count == 0 and flat.type.num_fields == 0:
        return flat.to_numpy(zero_copy_only=False)
    try:
        return np.array(scalar.as_py())
    except ValueError:
        return np.empty(0, dtype=object)


class RowImages(PartOf, DecodedImages):
    """Rows of an image and its class."""

    def __init__(self, table: MappedTable, part: Part, config: HuggingFaceData, kept: Kept | None = None) -> None:
        PartOf.__init__(self, table, part)
        DecodedImages.__init__(self, config.image_size, config.resize, kept)
        self._table, self._config = table, config

    def target(self, index: int) -> int:
        return self._table.row(self._part[index], _names(self._config)[1:])[0]

    def stamp(self, index: int) -> Stamp:
        return self.encoded(index)[1]

    def encoded(self, index: int) -> tuple[bytes | bytearray, Stamp]:
        return self._table.encoded(self._part[index], _names(self._config)[0])

    def read(self, index: int) -> tuple[Tensor, int]:
        image, target = self._table.row(self._part[index], _names(self._config))
        return image, target


class TableRows(PartOf):
    """Rows of anything: a column as it is, several as a dict of them."""

    def __init__(self, table: MappedTable, part: Part, config: HuggingFaceData) -> None:
        super().__init__(table, part)
        self._table, self._config = table, config

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        config, names = self._config, _names(self._config)
        found = dict(zip(names, self._table.row(self._part[index], names), strict=True))
        for name in names:
            if kind(self._table.features[name]) == "image":
                found[name] = fitted(found[name], config.image_size, config.resize or config.image_size)
        inputs, targets = (
            found[columns] if isinstance(columns, str) else {name: found[name] for name in columns}
            for columns in (config.inputs, config.targets)
        )
        return inputs, targets


def inputs_of(config: HuggingFaceData, path: Path) -> TableRows:
    """The inputs of a file's rows, without targets that mean anything."""
    own = config.model_copy(update={"train": str(path), "targets": config.inputs})
    table = _table(own, "train")
    return TableRows(table, whole(len(table)), own)


def _names(config: HuggingFaceData) -> list[str]:
    both = [[one] if isinstance(one, str) else one for one in (config.inputs, config.targets)]
    return list(dict.fromkeys(both[0] + both[1]))


def build(config: HuggingFaceData, local_rank0_first: Callable[[], AbstractContextManager[None]]) -> Splits:
    with local_rank0_first():
        tables = {name: _table(config, name) for name in ("train", "eval", "test") if getattr(config, name) is not None}
    train = tables["train"]
    for name, table in tables.items():
        if table.features != train.features:
            other = next(column for column, feature in table.features.items() if feature != train.features[column])
            raise DataError(
                f"data.{name}: the column {other} holds {table.features[other]}, and that of data.train "
                f"{train.features[other]}"
            )
    single = isinstance(config.inputs, str) and isinstance(config.targets, str)
    kinds = [kind(train.features[name]) for name in _names(config)]
    images = single and kinds in (["image", "class"], ["image", "int"])
    caches: dict[int, Kept] = {}
    if isinstance(config.cache, ImageCache):
        if not images:
            raise DataError("data.cache keeps rows of one image and one class, and these are others")
        room = Room(config.cache)
        for table in tables.values():
            origin = Origin(name=str(table.files[0]), rows=len(table), digest=table.fingerprint)
            caches[id(table)] = kept_images(config.cache, config.image_size, config.resize, origin, room)
    if config.eval_fraction is None:
        parts = {name: (table, whole(len(table))) for name, table in tables.items()}
    else:
        kept, held = split(len(train), config.eval_fraction, config.split_seed)
        parts = {"train": (train, kept), "eval": (train, held)}
        parts |= {"test": (tables["test"], whole(len(tables["test"])))} if "test" in tables else {}
    sets = {
        name: RowImages(table, part, config, caches.get(id(table))) if images else TableRows(table, part, config)
        for name, (table, part) in parts.items()
    }
    names = getattr(train.features[config.targets], "names", None) if isinstance(config.targets, str) else None
    first = sets["train"]
    shape, outputs = (first.shape, None) if isinstance(first, RowImages) else shape_of(first, config.on_error)
    return Splits(
        train=first,
        evaluation=sets["eval"],
        test=sets.get("test"),
        classes=tuple(names) if names else None,
        shape=shape,
        outputs=outputs,
    )


def _table(config: HuggingFaceData, split_name: str) -> MappedTable:
    """Opens a folder that save_to_disk wrote, or files; those that are no Arrow files are converted, once a machine."""
    try:
        import datasets
    except ImportError:
        raise UserError("data.name huggingface needs datasets, pip install 'dist-train[huggingface]'") from None
    key, given = f"data.{split_name}", getattr(config, split_name)
    datasets.disable_progress_bars()
    try:
        if isinstance(given, str) and os.path.isdir(given):
            data, files = _on_disk(datasets, Path(given), key)
        else:
            files = expanded(given, key)
            formats = {FORMATS.get(path.suffix.lower()) for path in files}
            if len(formats) > 1 or None in formats:
                raise DataError(f"{key}: the files must all end in one of {alternatives([*FORMATS])}")
            data = datasets.load_dataset(
                str(formats.pop()),
                data_files=[str(path.absolute()) for path in files],
                split="train",
                cache_dir=config.cache_folder,
            )
    except UserError:
        raise
    except Exception as error:  # of many kinds, those of pyarrow among them
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{key}: cannot read {given}: {printable(reason, 300)}") from error
    return MappedTable(data, files, _names(config), key)


def _on_disk(datasets: Any, folder: Path, key: str) -> tuple[Any, list[Path]]:
    if not (folder / _SAVED).exists():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{_SAVED}"))
        some = (
            f"holds the splits {', '.join(inside)}: name one, {key}={folder / inside[0]}"
            if inside
            else ("is no folder of Dataset.save_to_disk; of a folder of files name the files, with *")
        )
        raise DataError(f"{key}: {folder} {some}")
    return datasets.load_from_disk(str(folder)), sorted(folder.glob("*.arrow"))


def _rows_in(file: Path) -> int:
    """The number of rows of a file, for a message."""
    import pyarrow
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return pyarrow.parquet.read_metadata(file).num_rows
    if file.suffix == ".arrow":
        with pyarrow.memory_map(str(file)) as mapped:
            return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(mapped))
    with open(file, "rb") as lines:
        return sum(not line.isspace() for line in lines)
