"""The data sets: what they hold, how they split, and what they say when something is wrong with the files."""

import multiprocessing
import os
import pickle
import resource
import socket
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dist_train.config.schema import Cifar10, CustomData, Digits, ImageFolder, Mnist, Synthetic, Table
from dist_train.data import datasets, decode
from dist_train.data.datasets.base import held_out
from dist_train.data.datasets.class_counts import class_lines
from dist_train.data.decode import decode_file
from dist_train.errors import ExitCode, UserError


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six PNGs in train/, of two in eval/; image k of a class is uniformly grey, 10 k + its class."""
    for split, count in (("train", 6), ("eval", 2)):
        for number, name in enumerate(("ant", "bee")):
            for k in range(count):
                save(tmp_path / split / name / f"{k}.png", np.full((20, 30, 3), 10 * k + number, dtype=np.uint8))
    return tmp_path


def everything(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return dataset.__getitems__(np.arange(len(dataset)))


# ---------------------------------------------------------------- digits, synthetic


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    splits = datasets.build(Digits())
    assert (len(splits.train), len(splits.evaluation), splits.shape) == (1438, 359, (1, 8, 8))
    assert splits.classes == tuple("0123456789")
    images = torch.cat([everything(splits.train)[0], everything(splits.evaluation)[0]])
    targets = torch.cat([everything(splits.train)[1], everything(splits.evaluation)[1]])
    assert images.dtype == torch.uint8 and images.max() == 255
    bunch = load_digits()
    ours = sorted((target, image) for target, image in zip(targets.tolist(), images.flatten(1).tolist(), strict=True))
    scaled = np.round(bunch.data * 255 / 16).astype(int).tolist()
    assert ours == sorted(zip(bunch.target.tolist(), scaled, strict=True))


def test_digits_import_nothing_of_scikit_learn():
    code = "import sys; from dist_train.data.datasets import digits; digits._table(); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_digits_without_scikit_learn_or_its_file_are_an_error_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"needs scikit-learn, pip install 'dist-train\[demo\]'"):
        datasets.build(Digits())
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "sklearn")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"file of scikit-learn's: .*sklearn/datasets/data/digits\.csv\.gz"):
        datasets.build(Digits())


def test_the_split_follows_its_seed():
    first, same, other = (everything(datasets.build(Digits(split_seed=s)).evaluation)[0] for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert len(datasets.build(Digits(eval_fraction=0.5)).evaluation) == 898


# ---------------------------------------------------------------- held out


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=80), st.sampled_from([0.05, 0.2, 0.5, 0.9]), st.integers(0, 3))
def test_a_stratified_split_has_every_class_that_has_two_samples_in_both(targets, fraction, seed):
    config = Digits(eval_fraction=fraction, split="stratified", split_seed=seed)
    sizes = np.bincount(targets, minlength=7)
    if sizes.max() < 2:
        with pytest.raises(UserError, match="no class has two samples"):
            held_out(config, "abcdefg", targets)
        return
    parts = held_out(config, "abcdefg", torch.tensor(targets))
    assert sorted([*parts.kept, *parts.held]) == list(range(len(targets)))
    assert (np.diff(parts.kept) > 0).all() and (np.diff(parts.held) > 0).all()
    for number, size in enumerate(sizes):
        held = (np.array(targets)[parts.held] == number).sum()
        assert abs(held - size * fraction) <= max(0.5, 1 - size * fraction, size * fraction - size + 1) and (
            0 < held < size or size < 2
        )
    again = held_out(config, "abcdefg", targets)
    assert np.array_equal(again.held, parts.held)


def test_a_random_split_that_lacks_a_class_says_so():
    targets = [0] * 98 + [1] * 2
    parts = held_out(Digits(eval_fraction=0.01), ("common", "rare"), targets)
    assert parts.notes == (
        "the evaluation split has no sample of 'rare': data.split=stratified takes some of every class that has two",
    )
    parts = held_out(Digits(eval_fraction=0.01, split="stratified"), ("common", "rare"), targets)
    assert parts.notes == ("2 of 100 samples are held out for evaluation, some of every class (stratified)",)
    parts = held_out(Digits(split="stratified"), ("common", "rare", "gone"), [*targets, 2])
    assert parts.notes[1] == "the evaluation split has no sample of 'gone'"
    assert held_out(Digits(), None, [0.5, 0.25]).notes == ()


def test_digits_and_folders_are_split_by_class_where_that_is_asked_for(folder):
    from sklearn.datasets import load_digits

    splits = datasets.build(Digits(split="stratified"))
    whole = np.bincount(load_digits().target)
    assert np.array_equal(np.bincount(everything(splits.evaluation)[1]), np.round(whole * 0.2))
    images = datasets.build(
        ImageFolder(root=str(folder / "train"), eval_fraction=0.3, split="stratified", image_size=8)
    )
    assert sorted(everything(images.evaluation)[1].tolist()) == [0, 0, 1, 1]
    assert "4 of 12 samples are held out" in images.notes[-1]


def test_synthetic_images_are_functions_of_their_index():
    splits = datasets.build(Synthetic(shape=[2, 5, 7], classes=3, size=100, eval_size=20))
    images, targets = everything(splits.train)
    assert images.shape == (100, 2, 5, 7) and images.dtype == torch.uint8 and targets.dtype == torch.int64
    some = np.array([7, 99, 7, 0])
    assert torch.equal(splits.train.__getitems__(some)[0], images[some])
    assert torch.equal(splits.train.__getitems__(some)[1], targets[some])
    assert set(targets.tolist()) == {0, 1, 2}
    assert len(images.flatten(1).unique(dim=0)) == 100
    evaluation = everything(splits.evaluation)[0]
    assert not any(torch.equal(a, b) for a in evaluation for b in images)


def test_synthetic_images_can_be_learned():
    splits = datasets.build(Synthetic(shape=[3, 16, 16], classes=10, size=2000, eval_size=500))
    (images, targets), (others, wanted) = everything(splits.train), everything(splits.evaluation)
    means = torch.stack([images[targets == c].float().mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(others.float().flatten(1), means).argmin(1)
    assert (nearest == wanted).float().mean() > 0.95


# ---------------------------------------------------------------- image_folder


def test_image_folder_reads_each_file_with_its_class(folder: Path):
    config = ImageFolder(root=str(folder), train="train", eval="eval", image_size=16)
    splits = datasets.build(config)
    assert (splits.classes, splits.shape, splits.test) == (("ant", "bee"), (3, 16, 16), None)
    images, targets = everything(splits.train)
    assert targets.tolist() == [0] * 6 + [1] * 6
    assert images.shape == (12, 3, 16, 16)
    assert images.flatten(1).float().mean(1).tolist() == [10 * k + c for c in range(2) for k in range(6)]
    assert everything(splits.evaluation)[1].tolist() == [0, 0, 1, 1]
    assert splits.train.path(7) == str(folder / "train" / "bee" / "1.png")


def test_image_folder_splits_one_folder(folder: Path):
    config = ImageFolder(root=str(folder / "train"), eval_fraction=0.25, image_size=4)
    splits = datasets.build(config)
    kept, held = ({s.path(k) for k in range(len(s))} for s in (splits.train, splits.evaluation))
    assert (len(kept), len(held)) == (9, 3)
    assert not kept & held


def test_image_folder_resizes_the_shorter_side_and_cuts_the_middle(tmp_path: Path):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 15:25] = 200  # the middle, after halving 10 columns wide in 20
    save(tmp_path / "a" / "0.png", pixels)
    save(tmp_path / "a" / "1.png", pixels)
    splits = datasets.build(ImageFolder(root=str(tmp_path), eval_fraction=0.5, image_size=4, resize=10))
    images, _ = splits.train.__getitems__(np.arange(1))
    assert (images == 200).all()


def test_image_folder_opens_no_file_before_it_is_asked(folder: Path):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"not an image")
    splits = datasets.build(ImageFolder(root=str(folder), train="train", eval="eval"))
    with pytest.raises(UserError, match=r"train/bee/2\.png: it is no image") as error:
        splits.train.__getitems__(np.array([8]))
    assert error.value.code == ExitCode.DATA


def test_image_folder_with_a_hundred_thousand_files_is_small_to_hand_to_a_process():
    from dist_train.data.datasets.image_folder import FileList

    paths = [f"/data/train/n{k % 1000:08d}/n{k:08d}.JPEG".encode() for k in range(100_000)]
    files = FileList(paths, [k % 1000 for k in range(100_000)])
    assert [files[k] for k in (0, 1, 99_999)] == [paths[0], paths[1], paths[-1]]
    assert len(pickle.dumps(files)) < 60 * 100_000


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda f: SimpleNamespace(root="nowhere"), r"cannot read the image folder .*nowhere/train: No such file"),
        (lambda f: (f / "train" / "empty").mkdir(), r"train/empty has no image"),
        (lambda f: save(f / "eval" / "cat" / "0.png", noise(4, 4, 3)), r"eval/cat is no class .*ant, bee"),
        (lambda f: [p.unlink() for p in (f / "eval" / "ant").iterdir()], r"eval/ant has no image"),
    ],
    ids=["no folder", "empty class", "unknown class", "empty class of eval"],
)
def test_image_folder_says_what_is_wrong_with_the_folders(folder: Path, break_it, message: str):
    other = break_it(folder)
    root = getattr(other, "root", str(folder))
    with pytest.raises(UserError, match=message) as error:
        datasets.build(ImageFolder(root=root, train="train", eval="eval"))
    assert error.value.code == ExitCode.DATA


def test_image_folder_without_class_folders(tmp_path: Path):
    save(tmp_path / "0.png", noise(4, 4, 3))
    with pytest.raises(UserError, match="has no folder in it"):
        datasets.build(ImageFolder(root=str(tmp_path), eval_fraction=0.5))


def notes_of(root: Path, **options) -> list[str]:
    """Those on the files; what the drawn split lacks, and the classes, have tests of their own."""
    return [
        line.replace(f"{root}/", "").replace(str(root), ".")
        for line in datasets.build(ImageFolder(root=str(root), **options)).notes
        if " split has no sample of " not in line and not line.startswith("classes  ")
    ]


def picture(path: Path) -> None:
    save(path, noise(4, 4, 3))


def test_image_folder_with_nothing_left_out_says_nothing(folder: Path):
    assert notes_of(folder, train="train", eval="eval") == []


def test_image_folder_says_what_it_left_out_or_has_twice(tmp_path: Path):
    for name in ("Cat/0.png", "cat/0.tif", "dog/deep/1.jpg", "dog/deep/1.png", "2.jpg", "3.gif"):
        picture(tmp_path / name)
    for name in ("dog/a.heic", "dog/b.HEIC", "dog/readme", "dog/._0.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "dog" / "up").symlink_to(tmp_path)
    (tmp_path / "dog" / "deep" / "round").symlink_to(tmp_path / "dog")
    (tmp_path / "hound").symlink_to(tmp_path / "cat")
    assert notes_of(tmp_path, eval_fraction=0.5) == [
        "3 files under . are of no kind that is read (.heic 2, no ending 1)",
        "2 images directly in ., in no class's folder, are not read",
        "1 file under . is hidden, and so not read (dog/._0.jpg)",
        "1 image under . may be there twice, by another ending: dog/deep/1.jpg and 1.png",
        "dog/deep/round leads back to a folder that it is in: left out",
        "dog/up leads back to a folder that it is in: left out",
        "hound is cat once more: its images are there twice",
        "the classes 'Cat' and 'cat' differ in upper and lower case alone",
    ]


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "Validation", "test"), ("train", "test")])
def test_splits_that_would_be_taken_for_classes_are_refused(tmp_path: Path, names: tuple[str, ...]):
    for name in names:
        picture(tmp_path / name / "cat" / "0.png")
    with pytest.raises(UserError, match=f"for these as splits set data.train={names[0]} data") as error:
        notes_of(tmp_path, eval_fraction=0.5)
    assert error.value.code == ExitCode.DATA and "\n" not in str(error.value)
    assert all(f"={name}" in str(error.value) for name in names)


@pytest.mark.parametrize(
    ("names", "which"),
    [
        (("train/0", "val/0"), "the"),
        (("train/0", "val/a/0", "rest/0"), "among the"),
        (("train/0", "car/0", "plane/0"), None),  # vehicles
        (("test/0", "valid/0"), None),
    ],
)
def test_classes_that_may_be_meant_are_trained_on(tmp_path: Path, names: tuple[str, ...], which: str | None):
    for name in names:
        picture(tmp_path / f"{name}.png")
        picture(tmp_path / f"{name}1.png")
    advice = "for these as splits set data.train=train data.eval=val data.eval_fraction=null"
    assert notes_of(tmp_path, eval_fraction=0.5) == ([f"{which} classes are train and val: {advice}"] if which else [])


def test_image_folder_counts_its_classes(tmp_path: Path):
    for name, number in (("circels", 2), ("circles", 8), ("squares", 9)):
        for each in range(number):
            picture(tmp_path / name / f"{each}.png")
    assert datasets.build(ImageFolder(root=str(tmp_path), eval_fraction=0.5)).notes[:2] == (
        "classes  3: circels 2, circles 8, squares 9",
        "! circels (2) looks like circles (8): is it the same class, misspelt?",
    )


@pytest.mark.parametrize(
    ("few", "many"),
    [("circels", "circles"), ("circle", "circles"), ("cirkles", "circles"), ("dog", "dogs"), ("Sea-lion", "sea_lions")],
)
def test_a_class_that_may_be_misspelt_is_named(few: str, many: str):
    said = f"! {few} (10) looks like {many} (90): is it the same class, misspelt?"
    assert [*class_lines(("other", few, many), (50, 10, 90))][1:] == [*class_lines((many, few), (90, 10))][1:] == [said]
    assert len([*class_lines((few, many), (10, 39))]) == len([*class_lines((few, many), (0, 90))]) == 1


@pytest.mark.parametrize(
    ("few", "many"),
    [
        ("cat", "car"),
        ("grade_ii", "grade_iii"),
        ("class_1", "class_10"),
        ("n01440764", "n01440765"),
        ("male", "female"),
    ],
)
def test_a_class_of_another_meaning_is_not(few: str, many: str):
    assert len([*class_lines((few, many), (10, 90))]) == 1


def test_of_many_classes_the_smallest_and_the_largest_are_named():
    names = [f"class {number}" for number in range(1000)]
    counts = [5, 2000, *range(100, 1098)]
    assert [*class_lines(names, counts)] == ["classes  1,000: class 0 5 (the fewest) … class 1 2,000 (the most)"]


def test_classes_one_folder_too_deep_are_told(tmp_path: Path):
    for name in ("all/circles/0", "all/circles/1", "all/squares/0"):
        picture(tmp_path / f"{name}.png")
    words = "the only class has folders in it (circles, …): if these are the classes, name"
    assert f"! {words} all" in notes_of(tmp_path, eval_fraction=0.5)
    picture(tmp_path / "none" / "0.png")
    assert not any(words in line for line in notes_of(tmp_path, eval_fraction=0.5))


def test_a_list_of_images_is_no_folder(tmp_path: Path):
    (tmp_path / "split.csv").write_text("file,label\na.png,cat\n")
    root = str(tmp_path / "split.csv")
    for data in (ImageFolder(root=root, eval_fraction=0.5), Table(root=root, targets=["label"])):
        with pytest.raises(UserError, match="need a data set of your own") as error:
            datasets.build(data)
        assert error.value.code == ExitCode.DATA and "\n" not in str(error.value)


def test_an_empty_class_says_what_it_holds(tmp_path: Path):
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"b has no image \(.*\); it holds others \(\.heic 1\)"):
        notes_of(tmp_path, eval_fraction=0.5)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    "mode, extension", [(m, e) for m in ("RGB", "L") for e in ("jpg", "png", "bmp", "webp", "tif")]
)
def test_decoding_is_pillows(tmp_path: Path, mode: str, extension: str):
    path = tmp_path / f"image.{extension}"
    Image.fromarray(noise(21, 17, 3)).convert(mode).save(path)
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    decoded = decode_file(str(path))
    assert decoded.dtype == torch.uint8 and decoded.shape == (3, 21, 17)
    # Both use libjpeg, but perhaps not the same release of it.
    assert (decoded.int() - expected.int()).abs().max() <= (2 if extension == "jpg" else 0)


_TORCHVISIONS = """
import sys
from dist_train.data.decode import decode_file, decoder_name
ours = decode_file(sys.argv[1])
assert not any(name.split(".")[0] == "torchvision" for name in sys.modules), "imported"
from torchvision.io import ImageReadMode, decode_jpeg, read_file
theirs = decode_jpeg(read_file(sys.argv[1]), ImageReadMode.RGB, apply_exif_orientation=True)
assert decoder_name() == "torchvision" and ours.equal(theirs)
"""


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_files_are_torchvisions_and_need_no_import_of_it(tmp_path: Path, mode: str):
    path = tmp_path / "image.jpg"
    image, exif = Image.fromarray(noise(21, 17, 3)).convert(mode), Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image.save(path, exif=exif)
    subprocess.run([sys.executable, "-W", "ignore", "-c", _TORCHVISIONS, str(path)], check=True)


def test_transparency_is_dropped_and_sixteen_bits_are_scaled(tmp_path: Path):
    rgba = noise(8, 9, 4)
    save(tmp_path / "rgba.png", rgba)
    assert torch.equal(decode_file(str(tmp_path / "rgba.png")), torch.from_numpy(rgba[..., :3]).permute(2, 0, 1))
    grey = noise(8, 9)
    save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    for reader in (decode_file, lambda path: decode._pillow(bytearray(Path(path).read_bytes()))):
        assert torch.equal(reader(str(tmp_path / "deep.png")), torch.from_numpy(grey).expand(3, -1, -1))


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_exif_orientation_is_respected(tmp_path: Path, extension: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255  # the left half, which becomes the upper one
    save(tmp_path / f"turned.{extension}", pixels, exif=exif.tobytes())
    image = decode_file(str(tmp_path / f"turned.{extension}"))
    assert image.shape == (3, 32, 16)
    assert image[:, :12].min() > 240 and image[:, 20:].max() < 15


def test_a_wrong_extension_does_not_matter(tmp_path: Path):
    Image.fromarray(noise(5, 6, 3)).save(tmp_path / "png.jpg", format="PNG")
    assert decode_file(str(tmp_path / "png.jpg")).shape == (3, 5, 6)


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "webp", "tif", "gif"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, extension: str, keep: float):
    path = tmp_path / f"broken.{extension}"
    save(path, noise(32, 32, 3))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=rf"cannot read the image .*broken\.{extension}: ") as error:
        decode_file(str(path))
    assert error.value.code == ExitCode.DATA
    assert "\n" not in str(error.value) and ".cpp" not in str(error.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(UserError, match="gone.png: No such file"):
        decode_file(str(tmp_path / "gone.png"))


def test_a_line_of_pixels_takes_no_gigabytes(tmp_path: Path):
    """1 × 20,000 pixels with a shorter side of 224 would be 4,480,000 pixels long."""
    pixels = np.zeros((1, 20_000, 3), dtype=np.uint8)
    pixels[:, 9_990:10_010] = 200
    for name, image in (("0.png", pixels), ("1.png", pixels.transpose(1, 0, 2))):
        save(tmp_path / "a" / name, image)
    splits = datasets.build(ImageFolder(root=str(tmp_path), eval_fraction=0.5, image_size=224))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = torch.cat([split.__getitems__(np.arange(1))[0] for split in (splits.train, splits.evaluation)])
    assert (images == 200).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(tmp_path: Path):
    save(tmp_path / "a.jpg", noise(8, 8, 3))
    content = (tmp_path / "a.jpg").read_bytes()
    place = content.index(b"\xff\xc0") + 5
    (tmp_path / "a.jpg").write_bytes(content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :])
    save(tmp_path / "a.png", noise(8, 8, 3))
    content = (tmp_path / "a.png").read_bytes()
    header = b"IHDR" + 2 * (20_000).to_bytes(4) + content[24:29]
    (tmp_path / "a.png").write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:])
    for name, words in (("a.jpg", "65,535 × 65,535 pixels, more than"), ("a.png", "exceeds limit")):
        with pytest.raises(UserError, match=f"{name}: .*{words}") as error:
            decode_file(str(tmp_path / name))
        assert error.value.code == ExitCode.DATA and "\n" not in str(error.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_an_error_and_no_wait(tmp_path: Path, make):
    make(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: (it is no file|Is a directory)"):
        decode_file(str(tmp_path / "a.jpg"))


def test_a_program_in_the_place_of_an_image_is_not_run(tmp_path: Path):
    """Pillow would hand PostScript to Ghostscript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"a\.png: it is no image of a known format"):
        decode_file(str(tmp_path / "a.png"))


def test_pixels_without_a_known_white_are_refused(tmp_path: Path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: its pixels are floats"):
        decode_file(str(tmp_path / "a.tif"))


def _broken(content: bytearray, number: int, draw: np.random.Generator) -> bytearray:
    place = int(draw.integers(3, len(content)))
    match number % 4:
        case 0:
            content[place] ^= 255
        case 1:
            return content[:place]
        case 2:
            del content[place : place + int(draw.integers(1, 40))]
        case 3:
            content[place:place] = draw.bytes(int(draw.integers(1, 40)))
    return content


def _decode_broken_files(folder: Path, answer) -> None:
    draw, refused = np.random.default_rng(0), 0
    for image in sorted(folder.iterdir()):
        broken = folder.parent / f"broken{image.suffix}"
        for number in range(150):
            broken.write_bytes(_broken(bytearray(image.read_bytes()), number, draw))
            try:
                assert decode_file(str(broken)).shape[0] == 3
            except UserError as error:
                assert str(broken) in str(error) and "\n" not in str(error), error
                refused += 1
    answer.send(refused)


def test_no_broken_file_ends_the_process(tmp_path: Path):
    """Bytes flipped, lost and added, in every format; torchvision's decoder of PNG dies of one that is flipped."""
    draw = np.random.default_rng(1)
    (tmp_path / "whole").mkdir()
    for extension in ("jpg", "png", "bmp", "webp", "tif", "gif"):
        smooth = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((48, 40))
        smooth.save(tmp_path / "whole" / f"image.{extension}")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_decode_broken_files, args=(tmp_path / "whole", theirs))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert ours.recv() > 300  # of 900
    ours.close()
    theirs.close()


# ---------------------------------------------------------------- torchvision's


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in its real file format; torchvision's checksums are those of the large one."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    names = ["data_batch_1", "data_batch_2", "test_batch"]
    for seed, name in enumerate(names):
        batch = {"data": noise(20, 3072, seed=seed), "labels": [k % 10 for k in range(20)]}
        (base / name).write_bytes(pickle.dumps(batch))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))
    thing = torchvision.datasets.CIFAR10
    monkeypatch.setattr(thing, "train_list", [[name, None] for name in names[:2]])
    monkeypatch.setattr(thing, "test_list", [[names[2], None]])
    monkeypatch.setattr(thing, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    return tmp_path


def test_cifar10_is_held_as_one_tensor(cifar: Path):
    splits = datasets.build(Cifar10(root=str(cifar)))
    assert splits.test is None
    assert splits.shape == (3, 32, 32)
    assert splits.classes is not None and splits.classes[3] == "class 3"
    images, targets = everything(splits.train)
    assert torch.equal(images[:20], torch.from_numpy(noise(20, 3072, seed=0)).reshape(20, 3, 32, 32))
    assert targets.tolist() == [k % 10 for k in range(20)] * 2
    assert len(splits.evaluation) == 20


def test_with_a_share_held_out_the_official_test_images_are_the_test_split(cifar: Path):
    splits = datasets.build(Cifar10(root=str(cifar), eval_fraction=0.25))
    assert (len(splits.train), len(splits.evaluation), len(splits.test)) == (30, 10, 20)


def test_the_download_is_done_in_the_nodes_turn(cifar: Path):
    turns = []

    @contextmanager
    def local_rank0_first():
        turns.append("begin")
        yield
        turns.append("end")

    datasets.build(Cifar10(root=str(cifar)), local_rank0_first)
    assert turns == ["begin", "end"]


@pytest.mark.parametrize(
    "config, message",
    [
        (Cifar10, r"cifar10 is not in .* could not be downloaded \(.*\): put cifar-10-python\.tar\.gz into /"),
        (Mnist, r"put train-images-idx3-ubyte\.gz, .* into /.*/MNIST/raw"),
    ],
)
def test_without_a_network_it_says_which_files_to_put_where(tmp_path: Path, monkeypatch, config, message: str):
    def no_network(*_args, **_options):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_a, **_k: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("::", 1))]
    )
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message) as error:
        datasets.build(config(root=str(tmp_path)))
    assert error.value.code == ExitCode.DATA
    assert "\n" not in str(error.value)


def test_without_download_it_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(UserError, match="data.download is false: set it to true"):
        datasets.build(Cifar10(root=str(tmp_path), download=False))


# ---------------------------------------------------------------- the user's own


class Pairs:
    """A data set as a user writes it."""

    classes = ("low", "high")
    has_test = True

    def __init__(self, split: str, size: int = 10) -> None:
        self.split, self.size = split, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((2, 3), float(index)), index % 2


class WithoutTest(Pairs):
    has_test = False


class Counting(Pairs):
    classes = 4


class Endless:
    def __init__(self, split: str) -> None:
        pass

    def __iter__(self):
        return iter(())


class Exiting(Pairs):
    def __getitem__(self, index: int):
        raise SystemExit(0)


def test_a_data_set_that_ends_the_process_at_its_first_sample_is_no_success():
    with pytest.raises(Exception, match="0") as error:
        datasets.build(CustomData(name=f"{__name__}:Exiting"))
    assert type(error.value).__name__ == "SystemExit" and not isinstance(error.value, SystemExit)
    assert error.value.__notes__ == ["while reading sample 0 of Exiting"]
    assert "raise SystemExit(0)" in str(error.value.__cause__)


def test_a_users_data_set_is_built_for_each_split():
    splits = datasets.build(CustomData(name=f"{__name__}:Pairs", args={"size": 4}))
    assert [s.split for s in (splits.train, splits.evaluation, splits.test)] == ["train", "evaluation", "test"]
    assert (splits.classes, splits.shape, len(splits.train)) == (("low", "high"), (2, 3), 4)
    assert datasets.build(CustomData(name=f"{__name__}:WithoutTest")).test is None


@pytest.mark.parametrize(
    "name, args, message",
    [
        ("Endless", {}, "has no __len__ and no __getitem__: a map-style data set is needed"),
        ("Pairs", {"size": 0}, "is empty"),
        ("Counting", {}, "`classes` is 4, and must hold the names of the classes"),
        ("Pairs", {"sise": 4}, "sise"),
        ("Paris", {}, "has no Paris"),
    ],
)
def test_a_users_data_set_that_is_none_says_so(name: str, args: dict, message: str):
    with pytest.raises(UserError, match=message):
        datasets.build(CustomData(name=f"{__name__}:{name}", args=args))
