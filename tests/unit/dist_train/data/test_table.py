"""Tables: which columns are read, how they are normalised, and what is said of cells that are wrong."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train import models
from dist_train.config.schema import CustomModel, Mlp, Table
from dist_train.data import datasets
from dist_train.errors import ExitCode, UserError


def write(path: Path, header: list[str], rows, delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    """150 flowers, their sizes and their names."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    names = bunch.target_names[bunch.target]
    rows = [[*sizes, name] for sizes, name in zip(bunch.data.tolist(), names, strict=True)]
    return write(tmp_path / "iris.csv", ["s_len", "s_wid", "p_len", "p_wid", "kind"], rows)


def everything(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return dataset.__getitems__(np.arange(len(dataset)))


def test_classes_are_read_and_inputs_normalised_as_scikit_learn_does(iris):
    from sklearn.preprocessing import StandardScaler

    splits = datasets.build(Table(root=str(iris), targets=["kind"]))
    plain = datasets.build(Table(root=str(iris), targets=["kind"], normalize=False))
    assert splits.classes == ("setosa", "versicolor", "virginica") and splits.shape == (4,) and splits.outputs is None
    scaler = StandardScaler().fit(everything(plain.train)[0].double().numpy())
    for ours, unscaled in ((splits.train, plain.train), (splits.evaluation, plain.evaluation)):
        inputs, targets = everything(ours)
        assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
        expected = scaler.transform(everything(unscaled)[0].double().numpy())
        np.testing.assert_allclose(inputs.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(targets, everything(unscaled)[1])
    np.testing.assert_allclose(splits.scaling["mean"], scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(splits.scaling["std"], scaler.scale_, rtol=1e-6)
    assert (plain.scaling, len(splits.train), len(splits.evaluation)) == (None, 120, 30)


def test_every_row_is_in_one_split(iris):
    splits = datasets.build(Table(root=str(iris), targets=["kind"], normalize=False))
    parts = [torch.cat([one, two[:, None]], dim=1) for one, two in map(everything, (splits.train, splits.evaluation))]
    with iris.open() as file:
        names = {"setosa": 0.0, "versicolor": 1.0, "virginica": 2.0}
        rows = [[*map(float, row[:4]), names[row[4]]] for row in list(csv.reader(file))[1:]]
    assert sorted(torch.cat(parts).tolist()) == sorted(torch.tensor(rows).tolist())


def test_numbers_are_targets_as_they_are(tmp_path):
    rows = [[k, 2 * k, 0.1, 3 * k, -k] for k in range(20)]
    path = write(tmp_path / "t.csv", ["x1", "x2", "constant", "y1", "y2"], rows, ";")
    splits = datasets.build(Table(root=str(path), inputs=["x*", "constant"], targets=["y2", "y1"]))
    inputs, targets = everything(splits.train)
    assert (splits.outputs, splits.classes, splits.shape) == (2, None, (3,))
    assert targets.dtype == torch.float32 and torch.equal(targets[:, 1], -3 * targets[:, 0])
    assert inputs[:, 2].abs().max() < 1e-15 and splits.scaling["std"][2] == 1.0
    assert models.build(Mlp(), seed=0, **splits.offered)(inputs).shape == (16, 2)
    own = CustomModel(name="tests.unit.dist_train.data.test_table:Own")
    assert models.build(own, seed=0, **splits.offered).out_features == 2


class Own(torch.nn.Linear):
    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(shape[0], outputs)


def test_numbers_are_classes_where_one_says_so(tmp_path):
    path = write(tmp_path / "t.csv", ["x", "y"], [[k, (2, 10, 9)[k % 3]] for k in range(30)])
    splits = datasets.build(Table(root=str(path), targets=["y"], classes=True))
    assert splits.classes == ("2", "9", "10") and set(everything(splits.train)[1].tolist()) == {0, 1, 2}
    assert datasets.build(Table(root=str(path), targets=["y"])).outputs == 1


def test_files_of_splits_share_the_training_splits_numbers_and_classes(tmp_path):
    write(tmp_path / "a.csv", ["x", "y"], [[1, "b"], [3, "a"]])
    write(tmp_path / "b.csv", ["y", "other", "x"], [["a", "?", 5]])
    config = Table(root=str(tmp_path), train="a.csv", eval="b.csv", test="a.csv", inputs=["x"], targets=["y"])
    splits = datasets.build(config)
    assert splits.scaling == {"mean": [2.0], "std": [1.0]}
    assert [part.tolist() for part in everything(splits.evaluation)] == [[[3.0]], [0]]
    assert len(splits.test) == 2


def test_arrays_keep_their_shape_and_uint8_images_their_bytes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", image=images, label=np.arange(10) % 2, kind=np.array(["a", "b"] * 5), more=np.ones(10))
    config = Table(root=str(tmp_path / "t.npz"), inputs=["image"], targets=["label"], classes=True, normalize=False)
    splits = datasets.build(config)
    assert splits.shape == (1, 4, 4) and splits.classes == ("0", "1")
    assert everything(splits.train)[0].dtype == torch.uint8
    normal = datasets.build(config.model_copy(update={"normalize": True, "inputs": ["image", "more"]}))
    assert normal.shape == (17,) and everything(normal.train)[0].mean(0).abs().max() < 1e-6
    text = datasets.build(config.model_copy(update={"targets": ["kind"], "classes": "auto"}))
    assert text.classes == ("a", "b")


def test_the_fingerprint_follows_the_content(iris):
    first = datasets.build(Table(root=str(iris), targets=["kind"])).train.fingerprint()
    assert datasets.build(Table(root=str(iris), targets=["kind"])).train.fingerprint() == first
    iris.write_text(iris.read_text().replace("5.1", "5.2", 1))
    assert datasets.build(Table(root=str(iris), targets=["kind"])).train.fingerprint() != first


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("x,y\n1,2\n,3\n", {}, r"line 3, column x has no value: fill it in"),
        ("x,y\n1,2\nNA,3\n", {}, r"line 3, column x has no value"),
        ("x,y\n1,2\n\n3,nan\n", {}, r"row 2 \(line 4\), column y has no value"),
        ("x,y\n1,2\nnan,3\n", {}, r"row 2 \(line 3\), column x has no value"),
        ("x,y\n1,2\n-inf,3\n", {}, r"row 2 \(line 3\), column x is '-inf', no number"),
        ("x,y\n1,2\nred,3\n", {}, r"line 3, column x is 'red', no number"),
        ("x,y\n1,2\n3,b\n", {}, r"row 2 \(line 3\), column y is 'b', no number"),
        ("x,y\n1,a\n2,\n", {}, r"row 2 \(line 3\), column y has no value"),
        ("x,y\n1,2,3\n", {}, r"line 2 has 3 cells, and the header 2"),
        ("x,x\n1,2\n", {"targets": ["x"]}, "two columns are called 'x'"),
        ("x,y\n1,2\n", {"targets": ["Y"]}, r"has no column 'Y': it has x, y.*Did you mean y"),
        ("x,y\n1,2\n", {"inputs": ["y"]}, r"nothing is left for the input \(data\.inputs\)"),
        ("x,y\n1,a\n2,b\n", {"classes": False}, r"row 1 \(line 2\): the target is 'a', and data\.classes false"),
        ("x,y,z\n1,a,b\n", {"targets": ["y", "z"]}, r"a class is one column, and data\.targets are 2"),
        ("x,y\n", {}, "has no rows"),
        ("", {}, "has no column 'y'"),
        ('x,y\n1,"2\n', {}, "unexpected end of data"),
        ("x,y\n1,2\n", {}, "one sample cannot be split"),
    ],
)
def test_a_table_that_is_wrong_is_an_error_in_a_line(tmp_path, content, more, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        datasets.build(Table(**{"root": str(tmp_path / "t.csv"), "targets": ["y"], **more}))
    assert raised.value.code == ExitCode.DATA and "\n" not in str(raised.value)


def test_a_class_that_the_training_does_not_have_is_named(tmp_path):
    write(tmp_path / "a.csv", ["x", "y"], [[1, "b"], [3, "a"]])
    write(tmp_path / "b.csv", ["x", "y"], [[1, "b"], [3, "c"]])
    with pytest.raises(UserError, match=r"b\.csv, row 2 \(line 3\): c is no class of the training table"):
        datasets.build(Table(root=str(tmp_path), train="a.csv", eval="b.csv", targets=["y"]))


def test_arrays_that_are_wrong_are_errors_in_a_line(tmp_path):
    path = tmp_path / "t.npz"
    config = Table(root=str(path), inputs=["x"], targets=["y"])
    for arrays, message in (
        ({"x": np.ones(3), "y": np.ones(2)}, "its arrays have several lengths"),
        ({"x": np.array([1, np.nan]), "y": np.ones(2)}, "row 2, column x has no value"),
        ({"x": np.array(["a", "b"]), "y": np.ones(2)}, "the array x is <U1, and no numbers"),
        ({"x": np.array([None, 1]), "y": np.ones(2)}, "Object arrays cannot be loaded"),
        ({"x": np.float64(1), "y": np.ones(2)}, "its arrays have several lengths"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=message) as raised:
            datasets.build(config)
        assert raised.value.code == ExitCode.DATA
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"cannot read the table .*t\.npz"):
        datasets.build(config)
    with pytest.raises(UserError, match=r"t\.xlsx is no table: a \.csv, \.tsv or \.npz file"):
        datasets.build(Table(root=str(tmp_path / "t.xlsx"), targets=["y"]))
