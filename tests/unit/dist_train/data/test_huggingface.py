"""Tables that the library `datasets` reads: the same samples from every format, with mistakes named by file and row."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.config.schema import HuggingFaceData
from dist_train.data import datasets as ours
from dist_train.data.datasets.decoded import fitted
from dist_train.data.decode import decode_bytes
from dist_train.data.fetch import Fetch
from dist_train.data.given import read_given
from dist_train.data.sampler import LoadRequest
from tests.unit.dist_train.data.test_shards import png, refusal

hf = pytest.importorskip("datasets")
ROWS, CLASSES = 12, ["heron", "stork", "crane"]
FEATURES = {
    "picture": hf.Image(),
    "bird": hf.ClassLabel(names=CLASSES),
    "ids": hf.List(hf.Value("int32")),
    "grid": hf.Array2D((2, 3), "float64"),
    "size": hf.Value("float64"),
    "seen": hf.Value("bool"),
    "words": hf.Value("string"),
}


def rows(first: int, count: int) -> dict[str, list]:
    numbers = range(first, first + count)
    return {
        "picture": [{"bytes": png(n), "path": None} for n in numbers],
        "bird": [n % 3 for n in numbers],
        "ids": [[n, n + 1, 50_000] for n in numbers],
        "grid": [[[n, 0.5, 1], [2, 3, 4]] for n in numbers],
        "size": [n / 4 for n in numbers],
        "seen": [n % 2 == 0 for n in numbers],
        "words": [f"bird {n}" for n in numbers],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    whole = hf.Dataset.from_dict(rows(0, ROWS), hf.Features(FEATURES))
    whole.save_to_disk(str(folder / "disk"), num_shards=3)
    hf.DatasetDict({"train": whole, "test": whole}).save_to_disk(str(folder / "both"))
    for number in range(3):
        part = whole.select(range(4 * number, 4 * number + 4))
        part.to_parquet(str(folder / f"p{number}.parquet"))
        part.select_columns(["ids", "size", "words"]).to_json(str(folder / f"j{number}.jsonl"))
    return folder


def build(folder: Path, train: str, **more):
    given = {"train": f"{folder}/{train}", "eval_fraction": 0.25, "inputs": "picture", "targets": "bird"}
    return ours.build(HuggingFaceData(**{**given, "image_size": 16, "cache_folder": str(folder / "cache"), **more}))


@pytest.mark.parametrize("train", ["disk", "p*.parquet", "disk/*.arrow"])
def test_images_and_classes_are_those_that_were_written(folder: Path, train: str):
    splits = build(folder, train, eval=f"{folder}/both/test", eval_fraction=None, test=f"{folder}/disk")
    assert splits.classes == tuple(CLASSES) and splits.shape == (3, 16, 16)
    assert [len(splits.train), len(splits.evaluation), len(splits.test)] == [ROWS] * 3
    images, targets = splits.train.__getitems__(np.array([11, 0, 7]))
    assert targets.tolist() == [11 % 3, 0, 7 % 3] and targets.dtype == torch.int64
    for image, number in zip(images, (11, 0, 7), strict=True):
        assert torch.equal(image, fitted(decode_bytes(png(number)), 16, 16))


@pytest.mark.parametrize("train", ["disk", "p?.parquet", "j{0..2}.jsonl"])
def test_columns_are_tensors_numbers_and_texts(folder: Path, train: str):
    splits = build(folder, train, inputs=["ids", "words"], targets="size")
    assert (splits.classes, splits.shape) == (None, None)
    fetch = Fetch(splits.train, 0, None, 0.0, "stop")
    found = fetch.__getitems__(LoadRequest(step=0, number=0, parts=1, epoch=0, indices=np.arange(9)))
    numbers = [4 * size for size in found.targets.tolist()]
    assert found.targets.dtype == torch.float32 and len(set(numbers)) == 9
    assert found.inputs["ids"].dtype == torch.int64
    assert found.inputs["ids"].tolist() == [[n, n + 1, 50_000] for n in numbers]
    assert found.inputs["words"] == [f"bird {n:.0f}" for n in numbers]


def test_lists_of_lists_booleans_and_images_among_others(folder: Path):
    train = build(folder, "disk", inputs=["grid", "picture"], targets=["seen", "bird"]).train
    inputs, targets = train[3]
    assert inputs["grid"].shape == (2, 3) and inputs["grid"].dtype == torch.float32
    assert inputs["picture"].shape == (3, 16, 16) and isinstance(targets["seen"], bool)
    assert build(folder, "disk", inputs="ids", targets="ids").shape == (3,)


def test_every_format_has_the_same_split_and_a_copy_the_same_fingerprint(folder: Path, tmp_path: Path):
    found = [build(folder, train, inputs="words", targets="ids") for train in ("disk", "p*.parquet", "j*.jsonl")]
    texts = [[one.evaluation[k][0] for k in range(len(one.evaluation))] for one in found]
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 3
    for name in ("p0.parquet", "p1.parquet", "p2.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    more = {"inputs": "words", "targets": "ids"}
    assert build(tmp_path, "p*.parquet", **more).train.fingerprint() == found[1].train.fingerprint()
    assert build(tmp_path, "p{1,2}.parquet", **more).train.fingerprint() != found[1].train.fingerprint()
    changed = json.dumps({"ids": [1, 2, 9], "size": 0.0, "words": "bird 0"}) + "\n"
    before = (folder / "j0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "j0.jsonl").write_text(changed + "".join(before[1:]))
    assert (
        build(tmp_path, "j0.jsonl", **more).train.fingerprint() != build(folder, "j0.jsonl", **more).train.fingerprint()
    )


@pytest.mark.parametrize(
    ("train", "more", "said"),
    [
        ("none", {}, "data.train: there is no file"),
        ("both", {}, "holds the splits test, train: name one, data.train="),
        ("", {}, "holds the splits disk: name one"),
        ("cache", {}, "is no folder of Dataset.save_to_disk"),
        ("notes.txt", {}, "the files must all end in one of .parquet"),
        ("bad.jsonl", {}, "cannot read "),
        ("bad.parquet", {}, "cannot read "),
        ("disk", {"targets": "brid"}, "has no column brid: picture, bird, ids"),
        ("odd.jsonl", {"inputs": "a", "targets": "b"}, "the column a of "),
        ("disk", {"eval": "p0.parquet", "eval_fraction": None, "inputs": "nothing"}, "has no column nothing"),
    ],
)
def test_mistakes_are_told_in_one_line(folder: Path, train: str, more: dict, said: str):
    (folder / "cache").mkdir(exist_ok=True)
    (folder / "notes.txt").touch()
    (folder / "bad.jsonl").write_text('{"ids": [1]}\n{"ids": \n')
    (folder / "bad.parquet").write_bytes(b"PAR1 but nothing else")
    (folder / "odd.jsonl").write_text('{"a": {"x": 1}, "b": 2}\n' * 3)
    more = {name: f"{folder}/{value}" if name == "eval" and value else value for name, value in more.items()}
    assert said in refusal(lambda: build(folder, train, **more))


def test_a_row_that_cannot_be_read_is_named_with_its_file(folder: Path, tmp_path: Path):
    content = rows(0, 8)
    content["picture"][2]["bytes"] = b""
    content["picture"][6] = None
    content["bird"][7] = None
    whole = hf.Dataset.from_dict(content, hf.Features(FEATURES))
    for number in range(2):
        whole.select(range(4 * number, 4 * number + 4)).to_parquet(str(tmp_path / f"{number}.parquet"))
    train = build(tmp_path, "*.parquet", eval=f"{folder}/disk", eval_fraction=None).train
    request = LoadRequest(step=0, number=0, parts=1, epoch=0, indices=np.arange(8))
    found = Fetch(train, 0, None, 0.0, "substitute").__getitems__(request)
    assert [one.reason for one in found.broken] == [
        f"cannot read the image {tmp_path}/0.parquet, row 2: the file is empty",
        f"{tmp_path}/1.parquet, row 2: the column picture has no value, or lists of several lengths",
        f"{tmp_path}/1.parquet, row 3: the column bird has no value, or lists of several lengths",
    ]


def test_loading_processes_map_the_table_and_do_not_hold_it(tmp_path: Path):
    """32 MB of tokens, read by a forked process and by one that gets the data set pickled."""
    tokens = np.zeros((10, 1_000_000), np.int32)
    hf.Dataset.from_dict({"ids": list(tokens)}).save_to_disk(str(tmp_path / "d"))
    train = build(tmp_path, "d", inputs="ids", targets="ids").train
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            grown = pool.apply(own_memory_of_reading, (train,))
        assert grown < 20_000, f"{method}: {grown:,} kB"


def own_memory_of_reading(train) -> int:
    """kB that a process has more of its own, once it has read all rows."""

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    train[0]
    before = own()
    assert sum(len(train[index][0]) for index in range(len(train))) == 8_000_000, "the rows that are not held out"
    return own() - before


def test_inputs_are_read_without_their_targets(tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text('{"tokens": [1, 2], "more": "x"}\n{"tokens": [3, 4], "more": "y"}\n')
    config = HuggingFaceData(
        train="t", eval="e", inputs=["tokens"], targets=["label"], cache_folder=str(tmp_path / "cache")
    )
    rows = read_given([str(path)], "", config, {}, whole=False).dataset
    assert len(rows) == 2 and rows[1][0]["tokens"].tolist() == [3, 4]
