"""What `dist-train evaluate` prints of the classes."""

from dist_train.commands.evaluate import _text


def _row(classes: int) -> dict:
    columns = {"f1": [one / classes for one in range(classes)], "support": [7] * classes}
    figures = {"loss": 0.123456, "accuracy": 0.5, "top5": 1.0, "f1_micro": 0.5, "step": 3}
    names = [f"class {one}" for one in range(classes)]
    return {"checkpoint": "c", "split": "test", **figures, "classes": names, "per_class": columns}


def test_classes_are_a_table_and_of_many_the_worst_are_shown() -> None:
    few = _text(_row(4)).splitlines()
    assert few[1:3] == ["  loss             0.123", "  accuracy         50.0 %"] and "top-5" not in "".join(few)
    assert [line.split() for line in few[-5:-3]] == [["class", "F1", "support"], ["class", "0", "0.0", "%", "7"]]
    many = _text(_row(1000)).splitlines()
    assert len(many) < 30 and "the 20 of 1,000 classes with the lowest F1; --json has all of them" in many
    assert many[-1].split()[:2] == ["class", "19"]
    named = {**_row(2), "classes": None, "per_class": {"f1": [0.5, 0.6]}}
    assert _text(named).splitlines()[-1].split() == ["1", "60.0", "%"]
    assert _text({**named, "per_class": {}}).splitlines()[2] == "  accuracy         50.0 %"
