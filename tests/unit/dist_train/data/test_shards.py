"""Tar files of samples: read as tarfile reads them, indexed once, at any place, with every mistake named."""

import gc
import io
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dist_train.config.schema import Shards
from dist_train.data import datasets
from dist_train.data.datasets.decoded import fitted
from dist_train.data.datasets.part import split
from dist_train.data.datasets.shards import expanded
from dist_train.data.decode import decode_bytes
from dist_train.data.fetch import Fetch
from dist_train.data.sampler import LoadRequest
from dist_train.data.tars.index import index_of
from dist_train.data.tars.members import members
from dist_train.data.tars.samples import TarSamples
from dist_train.errors import ExitCode, UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path: Path, content: dict[str, bytes], kind: str = "pax", mtime: float = 1.7e9) -> Path:
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            tar.addfile(member, io.BytesIO(data))
    return path


def png(value: int, size: tuple[int, int] = (20, 30)) -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(written, "png")
    return written.getvalue()


def images(first: int, count: int) -> dict[str, bytes]:
    found = {}
    for key in range(first, first + count):
        found |= {f"a/{key:04}.png": png(key), f"a/{key:04}.cls": b"%d\n" % (key % 3), f"a/{key:04}.txt": b"no use"}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        write(folder / f"train-{number}.tar", images(10 * number, 10), [*FORMATS][number])
    write(folder / "eval.tar", images(30, 4))
    return folder


def config(folder: Path, **more) -> Shards:
    return Shards(**{"train": f"{folder}/train-{{0..2}}.tar", "eval": f"{folder}/eval.tar", "image_size": 16, **more})


def refusal(action, code: ExitCode = ExitCode.DATA) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert raised.value.code == code and "\n" not in str(raised.value)
    return str(raised.value)


# ---------------------------------------------------------------- the format

NAMES = st.text(st.sampled_from("ab.é/-0"), min_size=1, max_size=12).filter(lambda name: name.strip("/"))
LONG = st.builds(
    lambda part, count, end: "/".join([part] * count) + end, st.text("xyz", min_size=1), st.just(60), NAMES
)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])


@given(
    st.lists(
        st.tuples(NAMES | LONG, KINDS, st.binary(max_size=1300), st.sampled_from([0, 1.7e9, 1.7e9 + 0.5])), max_size=5
    ),
    st.sampled_from([*FORMATS]),
)
@settings(max_examples=100, deadline=None)
def test_members_are_those_that_tarfile_reads(tmp_path_factory, wanted, kind):
    path = tmp_path_factory.mktemp("any") / "any.tar"
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for name, type_, data, mtime in wanted:
            member = tarfile.TarInfo(name)
            member.mtime, member.linkname = mtime, "b" * 120 if kind != "ustar" else "b"
            if type_ == tarfile.AREGTYPE and len(name) > 90:
                type_ = tarfile.REGTYPE  # tarfile takes it for a folder, where a slash is its hundredth letter
            has_data = type_ == tarfile.REGTYPE or (type_ == tarfile.AREGTYPE and not name.endswith("/"))
            member.size = len(data) if has_data else 0
            member.type = type_
            try:
                tar.addfile(member, io.BytesIO(data))
            except ValueError:  # a name that ustar cannot hold
                continue
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isreg()]
    with open(path, "rb") as file:
        assert [*map(tuple, members(file, path, path.stat().st_size))] == expected


def found_in(path: Path) -> list[str]:
    with open(path, "rb") as file:
        return [member.name for member in members(file, path, path.stat().st_size)]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_tar_that_is_cut_anywhere_is_refused_with_the_place(tmp_path: Path, kind: str):
    whole = write(
        tmp_path / "whole.tar", {"a.cls": b"1", "x" * 90 + "/b.txt": b"2" * 700}, kind, 1.7e9 + 0.5
    ).read_bytes()
    last = len(whole.rstrip(b"\0"))
    end = -(-last // 512) * 512
    cut = tmp_path / "cut.tar"
    for size in [*range(0, end, 97), *range(0, end + 1, 512), end + 511]:
        cut.write_bytes(whole[:size])
        assert f"{cut} is truncated: it ends at byte {size:,}, " in refusal(lambda: index_of(cut, tmp_path))
    cut.write_bytes(whole[: end + 512])
    assert len(found_in(cut)) == 2


def test_what_is_no_tar_that_can_be_read_at_random_is_refused(tmp_path: Path):
    path = tmp_path / "x.tar"
    for command, kind in (("gzip", "gzip"), ("xz", "xz"), ("bzip2", "bzip2")):
        write(path, {"a.cls": b"1"})
        content = subprocess.run([command, "-c", path], capture_output=True, check=True).stdout
        path.write_bytes(content)
        assert f"{path} is compressed ({kind}), and can't be read at random" in refusal(
            lambda: index_of(path, tmp_path)
        )
    assert f"cannot read the tar {tmp_path}: Is a directory" in refusal(lambda: index_of(tmp_path, None))
    path.write_bytes(b"hello" * 1000)
    assert f"{path}: what begins at byte 0 is no header of a tar" in refusal(lambda: index_of(path, tmp_path))
    damaged = bytearray(write(path, {"a.cls": b"1", "b.cls": b"2"}).read_bytes())
    damaged[1024 + 7] ^= 1
    path.write_bytes(damaged)
    assert "what begins at byte 1,024 is no header of a tar" in refusal(lambda: index_of(path, tmp_path))
    hole = tmp_path / "hole.bin"
    with open(hole, "wb") as file:
        file.truncate(1 << 20)
        file.write(b"x")
    for kind in ("gnu", "posix"):
        subprocess.run(["tar", "--sparse", f"--format={kind}", "-cf", path, "-C", tmp_path, hole.name], check=True)
        assert "is a sparse file" in refusal(lambda: index_of(path, tmp_path))
    with tarfile.open(path, "w"):
        pass
    assert f"{path} holds no sample" in refusal(lambda: index_of(path, tmp_path))
    assert f"cannot read the tar {tmp_path}/gone.tar: No such" in refusal(lambda: index_of(tmp_path / "gone.tar", None))
    write(path, {"a.cls": b"1", "b.cls": b"2", "a.CLS": b"3"})
    assert f"{path} has two members a.cls, the second at byte 4,096" in refusal(lambda: index_of(path, tmp_path))


# ---------------------------------------------------------------- samples


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "d/a", "d/c"]), st.sampled_from(["x", "Y", "seg.png"]))), st.data()
)
@settings(max_examples=60, deadline=None)
def test_samples_are_the_members_up_to_the_first_dot_whatever_their_order(tmp_path_factory, names, data):
    folder = tmp_path_factory.mktemp("group")
    content = {f"{key}.{end}": data.draw(st.binary(max_size=600)) for key, end in dict.fromkeys(names)} | {
        "z.x": b"last"
    }
    others = {".hidden": b"", "README": b"", "__meta__/a.x": b"", "d/._a.x": b""}
    path = write(folder / "t.tar", others | content)
    samples = TarSamples([index_of(path, None)[0]])
    expected: dict[str, dict[str, bytes]] = {}
    for name, part in content.items():
        expected.setdefault(name.partition(".")[0], {})[name.partition(".")[2].lower()] = part
    assert len(samples) == len(expected)
    for index, (key, parts) in enumerate(expected.items()):
        assert samples.read(index) == parts and samples.name(index) == f"{path}!{key}"


def test_images_and_classes_are_those_of_the_files(folder: Path):
    splits = datasets.build(config(folder, classes=3, test=f"{folder}/eval.tar"))
    assert splits.classes == ("0", "1", "2") and splits.shape == (3, 16, 16)
    assert [len(splits.train), len(splits.evaluation), len(splits.test)] == [30, 4, 4]
    order = np.array([29, 0, 17])
    read, targets = splits.train.__getitems__(order)
    assert targets.tolist() == [29 % 3, 0, 17 % 3] and targets.dtype == torch.int64
    for image, key in zip(read, order.tolist(), strict=True):
        assert torch.equal(image, fitted(decode_bytes(png(key)), 16, 16))
    assert splits.train.path(17) == f"{folder}/train-1.tar!a/0017"


def test_a_part_held_out_and_the_rest_are_all_samples(folder: Path):
    splits = datasets.build(config(folder, eval=None, eval_fraction=0.2))
    names = [{one.path(index) for index in range(len(one))} for one in (splits.train, splits.evaluation)]
    assert [len(found) for found in names] == [24, 6] and len(names[0] | names[1]) == 30
    parts = split(1_000, 0.1, 3)
    assert sorted(part[index] for part in parts for index in range(len(part))) == [*range(1_000)]
    assert [*map(len, split(10**12, 0.5, 0))] == [5 * 10**11] * 2, "in no more memory"


@pytest.mark.parametrize(
    ("ending", "content", "more", "expected"),
    [
        ("cls", b" 2\n", {}, 2),
        ("cls", b"-100", {}, -100),
        ("cls", b"stork", {"classes": ["heron", "stork"]}, 1),
        ("json", b'{"label": 2, "x": 0}', {"target": "json", "target_field": "label"}, 2),
        ("json", b'{"label": "stork"}', {"target": ".JSON", "target_field": "label", "classes": ["a", "stork"]}, 1),
        ("cls", b"", {}, ".cls holds '', and must hold a class's number (names need data.classes)"),
        (
            "cls",
            b"crane",
            {"classes": ["heron", "stork"]},
            ".cls holds 'crane', and must hold a class's number or name",
        ),
        ("cls", b"1.5", {}, ".cls holds '1.5'"),
        ("cls", b"\xff", {}, ".cls holds no text"),
        ("json", b"[1]", {"target": "json", "target_field": "a"}, ".json holds no JSON object with the field a"),
        ("json", b'{"a": true}', {"target": "json", "target_field": "a"}, ".json holds 'True'"),
    ],
)
def test_a_class_is_a_number_or_a_name(tmp_path: Path, ending: str, content: bytes, more: dict, expected):
    path = write(tmp_path / "t.tar", {"k.png": png(0), f"k.{ending}": content})
    train = datasets.build(Shards(train=str(path), eval=str(path), image_size=8, **more)).train
    if isinstance(expected, int):
        assert train.read(0)[1] == expected
    else:
        assert f"{path}!k: {expected}" in refusal(lambda: train.read(0))


def test_classes_come_from_a_file_too(folder: Path, tmp_path: Path):
    (tmp_path / "names").write_text("heron\nstork\ncrane\n")
    assert datasets.build(config(folder, classes=str(tmp_path / "names"))).classes == ("heron", "stork", "crane")
    assert "cannot read no/names: No such file" in refusal(lambda: datasets.build(config(folder, classes="no/names")))
    assert "two have the same one" in refusal(lambda: datasets.build(config(folder, classes=["a", "a"])))


def test_samples_without_what_is_wanted_are_left_out_and_told(folder: Path, tmp_path: Path):
    path = write(tmp_path / "t.tar", {"README.md": b"hi", "a.png": png(0), "b.png": png(1), "b.cls": b"1"})
    splits = datasets.build(config(folder, train=str(path)))
    assert len(splits.train) == 1 and splits.train.path(0) == f"{path}!b"
    assert (
        f"2 samples have no .jpg or .jpeg or .png or .webp and .cls, and are left out ({path} has" in splits.notes[-1]
    )
    said = refusal(lambda: datasets.build(config(folder, train=str(path), target="label")))
    assert (
        f"{path} has no sample with .jpg or .jpeg or .png or .webp and .label: its members end in .cls .md .png" in said
    )


def decoded(members):
    """A user's own function: text, and how long it is."""
    return torch.frombuffer(members["txt"], dtype=torch.uint8).float(), len(members["cls"])


def test_a_function_of_the_users_decodes_samples(folder: Path):
    splits = datasets.build(config(folder, decode=f"{__name__}:decoded"))
    assert splits.shape == (6,) and splits.train[11][1] == 2 and splits.classes is None
    fetch = Fetch(splits.train, 0, None, 0.0, "stop")
    found = fetch.__getitems__(LoadRequest(step=0, number=0, parts=1, epoch=0, indices=np.arange(30)))
    assert found.inputs.shape == (30, 6) and splits.train.path(3).endswith("train-0.tar!a/0003")
    missing = datasets.build(config(folder, train=f"{folder}/eval.tar", decode=f"{__name__}:decoded")).train
    missing._decode = lambda members: members["nothing"]
    with pytest.raises(KeyError) as raised:
        missing[2]
    assert f"while decoding {folder}/eval.tar!a/0032" in raised.value.__notes__


def test_broken_samples_are_named_and_others_take_their_place(folder: Path, tmp_path: Path):
    content = images(0, 20) | {"a/0003.png": b"", "a/0007.png": png(7)[:60], "a/0011.cls": b"?"}
    path = write(tmp_path / "t.tar", content)
    train = datasets.build(config(folder, train=str(path))).train
    request = LoadRequest(step=0, number=0, parts=1, epoch=0, indices=np.arange(20))
    found = Fetch(train, 0, None, 0.0, "substitute").__getitems__(request)
    assert [one.index for one in found.broken] == [3, 7, 11]
    assert f"cannot read the image {path}!a/0003: the file is empty" == found.broken[0].reason
    assert all(f"{path}!a/{one.index:04}" in one.reason for one in found.broken)


# ---------------------------------------------------------------- the index


def test_an_index_is_made_once_and_anew_for_a_tar_that_has_changed(tmp_path: Path):
    path = write(tmp_path / "t.tar", {"a.cls": b"1"})
    first, is_new = index_of(path, None)
    assert is_new and first.place == tmp_path / ".t.tar.index" and index_of(path, None) == (first, False)
    write(path, {"b.cls": b"1"})
    os.utime(path, ns=(first.mtime_ns, first.mtime_ns))
    again, is_new = index_of(path, None)
    assert is_new and again.digest != first.digest, "of the same size and time, with other first bytes"
    for damage in (b"", b"{}", again.place.read_bytes()[:-1], b"\xff\n" * 99):
        again.place.write_bytes(damage)
        assert index_of(path, None) == (again, True)


def test_a_copy_of_the_tars_has_the_same_fingerprint_and_other_tars_another(folder: Path, tmp_path: Path):
    prints = set()
    for number, name in enumerate(["a", "b", "c"]):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.tar", images(number // 2, 3))
        prints.add(datasets.build(config(folder, train=f"{tmp_path}/{name}/*.tar")).train.fingerprint())
    assert len(prints) == 2


def test_an_index_goes_to_the_cache_where_it_cannot_stand_beside_the_tar(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tars" / ".t.tar.index").mkdir(parents=True)  # nothing can replace a folder, not even root
    path = write(tmp_path / "tars" / "t.tar", {"a.cls": b"1"})
    found, is_new = index_of(path, None)
    assert is_new and found.place.parent == tmp_path / "cache/dist-train/shards" and not index_of(path, None)[1]
    assert sorted(os.listdir(tmp_path / "tars")) == [".t.tar.index", "t.tar"], "and nothing is left beside it"
    assert index_of(path, tmp_path / "own")[0].place.parent == tmp_path / "own"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    said = refusal(lambda: index_of(path, None))
    assert f"the index of {path} can be kept neither in {tmp_path}/tars (" in said and "data.index_folder" in said


def test_a_tar_that_changes_while_it_is_read_is_told(folder: Path, tmp_path: Path):
    path = write(tmp_path / "t.tar", images(0, 3))
    for change, said in (
        (lambda: os.utime(path), "has changed since it was indexed"),
        (path.unlink, f"cannot read {path}, sample 1: No such file or directory"),
    ):
        train = datasets.build(config(folder, train=str(path))).train
        change()
        assert said in refusal(lambda train=train: train.read(1))


def test_open_files_are_few_and_go_with_the_data_set(tmp_path: Path):
    for number in range(200):
        write(tmp_path / f"{number:03}.tar", {f"{number}.cls": b"%d" % number})
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    samples = TarSamples([index_of(path, None)[0] for path in expanded(f"{tmp_path}/*.tar", "data.train")])
    for index in [*range(200), *reversed(range(200))]:
        assert samples.read(index) == {"cls": b"%d" % index}
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 128
    del samples
    assert len(os.listdir("/proc/self/fd")) == before


def test_patterns_name_files_as_a_shell_does(tmp_path: Path):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "b.tar", "a.tar", "odd-{1}.tar"):
        (tmp_path / name).touch()

    def names(*patterns: str) -> list[str]:
        return [path.name for path in expanded([f"{tmp_path}/{pattern}" for pattern in patterns], "data.train")]

    assert names("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert names("{b,a}.tar", "s-{1,0}*.tar") == ["b.tar", "a.tar", "s-10.tar", "s-08.tar", "s-09.tar"]
    assert names("odd-{1}.tar", "?.tar") == ["odd-{1}.tar", "a.tar", "b.tar"]
    assert f"data.train: there is no file {tmp_path}/s-11.tar" in refusal(lambda: names("s-{08..12}.tar"))
    assert "names 1 files twice, such as" in refusal(lambda: names("a.tar", "?.tar"))
    assert "names more than 1,000,000 files" in refusal(lambda: names("{0..99999999}.tar"))
