"""What is said of runs beside each other, from what lies in their directories."""

import json
import re

import pytest
import yaml

from dist_train.config.source import load
from dist_train.errors import UserError
from dist_train.report import compare_page
from dist_train.report.compare import compare
from dist_train.report.compare_words import comparison_record, comparison_sentences, figures_of
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import Best
from dist_train.tracking.jsonl import row_to_json
from launch.commands.compare import _text

CONFIG = {"name": "pages", "data": {"name": "synthetic"}, "model": {"name": "mlp"}}
STEPS = 8


def write_run(folder, seed, accuracy, *, lr=0.1, differs_at=99, status="done", task=None, **more):
    """A run whose losses depend on seed and step alone, up to `differs_at`."""
    folder.mkdir(parents=True)
    run = RunDir(folder)
    chosen = CONFIG | {"seed": seed, "optimizer": {"name": "sgd", "lr": lr}, **more}
    run.config.write_text(yaml.safe_dump(chosen if task is None else chosen | {"task": {"name": task}}))
    load(str(run.config))  # it is a config
    rows = []
    for step in range(1, STEPS + 1):
        loss = 1 / step + seed + (lr + seed / 50 if step >= differs_at else 0)
        position = {"step": step, "epoch": step / 4, "samples_seen": 32 * step}
        rows.append({"kind": "train", **position, "loss": loss, "lr": lr, "grad_norm": loss / 3})
        if step % 4 == 0 and accuracy is not None:
            figures = {"loss": loss, "accuracy": accuracy - (0.1 if step < STEPS else 0)}
            rows.append({"kind": "evaluation", **position, "split": "evaluation", **figures})
    run.metrics.write_text("".join(f"{row_to_json(row)}\n" for row in rows))
    run.state.write_text(json.dumps({"status": status, "step": STEPS, "total_steps": STEPS}))
    return folder


@pytest.fixture
def five_seeds(tmp_path):
    """A's accuracies spread over 4 points with the seed; B is 0.8 points better in each, give or take 0.3."""
    for seed in range(5):
        write_run(tmp_path / f"a{seed}", seed, 0.9 + seed / 100)
        write_run(tmp_path / f"b{seed}", seed, 0.908 + seed / 100 + (seed - 2) * 0.0015, lr=0.3, differs_at=2)
    return [tmp_path / f"{name}{seed}" for name in "ab" for seed in range(5)]


def test_pairs_of_seeds_show_what_runs_apart_do_not(five_seeds):
    found = compare(five_seeds)
    assert [(group.label, len(group.runs)) for group in found.groups] == [("A", 5), ("B", 5)]
    assert found.differing == [("optimizer.lr", [0.1, 0.3])]
    [one] = found.judgements
    assert one.better is True and one.paired.tells and not one.unpaired.tells
    said = comparison_sentences(found)
    assert said[0] == "B is better than A: accuracy +0.80 points (95 % 0.51 … 1.09), 5 seeds paired"
    assert re.fullmatch(
        r"unpaired: accuracy \+0.8 points \(95 % -1.\d … 3.\d\), 5 .* each; about \d+ more seeds", said[1]
    )
    assert (
        said[2]
        == "5 pairs of the same seed: loss and norm of the gradient are the same bits up to step 1; then loss differs"
    )
    assert compare(five_seeds[5:] + five_seeds[:5]).judgements[0].better is False


def test_a_lower_loss_is_better_and_so_is_a_lower_figure_that_is_asked_for(five_seeds):
    found = compare(five_seeds, "loss")
    assert (found.metric, found.better) == ("loss", "min") and found.judgements[0].better is False
    assert found.runs[0].best == Best(metric="loss", value=1 / STEPS, step=STEPS)


def test_the_figure_is_the_best_and_the_table_has_both(tmp_path):
    write_run(tmp_path / "a", 0, 0.9)
    write_run(tmp_path / "b", 1, 0.8)
    head, first, second = figures_of(compare([tmp_path]))
    assert head == ["", "run", "seed", "state", "best accuracy", "at step", "last step", "last accuracy", "last loss"]
    assert first[2:] == ["0", "done", "90.0 %", "8", "8", "90.0 %", "0.125"] and second[4] == "80.0 %"
    assert comparison_sentences(compare([tmp_path]))[0].startswith(
        "one config, 2 seeds: accuracy 85.0 % on average, standard dev"
    )


def test_the_first_step_that_differs_is_named_to_the_bit(tmp_path):
    a, b = (write_run(tmp_path / name, 3, 0.9, loader={"workers": workers}) for name, workers in (("a", 0), ("b", 2)))
    [meeting] = compare([a, b]).meetings
    assert (meeting.equal, meeting.step) == (STEPS, None)
    metrics = RunDir(b).metrics
    rows = metrics.read_text().splitlines(keepends=True)
    place = next(at for at, row in enumerate(rows) if '"step": 5,' in row)
    rows[place] = re.sub(r'("grad_norm": \d\.\d+)\d', r"\g<1>1", rows[place])
    metrics.write_text("".join(rows))
    found = compare([a, b])
    [meeting] = found.meetings
    assert (meeting.equal, meeting.step, meeting.name) == (4, 5, "grad_norm")
    assert f"up to step 4; then grad_norm differs: {meeting.values[0]!r} and {meeting.values[1]!r}" in " ".join(
        comparison_sentences(found)
    )


def test_what_is_not_done_or_there_twice_counts_for_no_test(five_seeds, tmp_path):
    write_run(tmp_path / "b5", 5, 0.1, lr=0.3, status="stopped")
    RunDir(tmp_path / "b5").state.write_text(json.dumps({"status": "stopped", "signal": "SIGINT", "step": 4}))
    write_run(tmp_path / "again", 0, 0.9)
    (tmp_path / "latest").symlink_to("again")
    found = compare([*five_seeds, tmp_path / "b5", tmp_path / "again", tmp_path / "latest"])
    assert len(found.runs) == 12 and found.judgements == compare(five_seeds).judgements
    assert comparison_sentences(found)[-1].startswith("not done, and left out of the test: ")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda folder: [write_run(folder / "a", 0, 0.9)], "1 run is given, and it takes two"),
        (lambda folder: [write_run(folder / "a", 0, 0.9), folder / "a"], "1 run is given, and it takes two"),
        (lambda folder: [write_run(folder / "a", 0, 0.9), write_run(folder / "b", 0, None)], "b has no evaluation yet"),
        (
            lambda folder: [write_run(folder / "a", 0, 0.9), write_run(folder / "b", 0, 0.9, task="multi_label")],
            "a by the max of accuracy, .*b by the max of mean_average_precision: compare runs of one task",
        ),
        (lambda folder: [write_run(folder / "a" / "logs" / "x", 0, 0.9).parents[1]], "a: no run directory, and no fol"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, how, said):
    with pytest.raises(UserError, match=said) as caught:
        compare(how(tmp_path))
    assert caught.value.code == 2 and "\n" not in str(caught.value)


def test_a_figure_that_nobody_has_is_named_beside_those_there_are(five_seeds):
    with pytest.raises(UserError, match="has no figure acc; it has loss, accuracy"):
        compare(five_seeds, "acc")


def test_a_run_of_somebody_else_writes_nothing_into_the_terminal_and_no_tag_into_the_page(five_seeds):
    metrics = RunDir(five_seeds[0]).metrics
    metrics.write_text(metrics.read_text().replace('"accuracy": 0.9', '"\\u001b[31m<img>": 1, "accuracy": 0.9'))
    metrics.write_text(metrics.read_text().replace('"accuracy": 0.8', '"accuracy": 1e400, "x": 0.8'))
    found = compare(five_seeds)
    assert found.runs[0].best == Best(metric="accuracy", value=0.9, step=STEPS)
    text, page = _text(found), compare_page.render_comparison(found)
    assert "[31m<img>" in text and "\x1b" not in text
    assert "<img>" not in page and "&lt;img&gt;" in page


def test_the_page_and_the_record_hold_the_same(five_seeds):
    found = compare(five_seeds)
    page = compare_page.render_comparison(found)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert data["comparison"] == json.loads(json.dumps(comparison_record(found)))
    assert [chart["title"] for chart in data["charts"]][:3] == [
        "Loss in training, smoothed",
        "Loss of the evaluation",
        "accuracy",
    ]
    assert {curve["label"] for curve in data["charts"][2]["curves"]} == {
        f"{g} seed {s}" for g in "AB" for s in range(5)
    }
    assert comparison_sentences(found)[0] in page


def test_many_runs_are_drawn_as_what_their_groups_have_in_common(tmp_path):
    for seed in range(7):
        write_run(tmp_path / f"a{seed}", seed, 0.9)
        write_run(tmp_path / f"b{seed}", seed, 0.9, lr=0.3)
    page = compare_page.render_comparison(compare([tmp_path]))
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    loss = next(chart for chart in data["charts"] if chart["title"] == "Loss of the evaluation")
    curves = {curve["label"]: curve["y"] for curve in loss["curves"]}
    assert curves["A mean"] == pytest.approx([3.25, 3.125]) and curves["B highest"] == pytest.approx([6.25, 6.125])
    assert len(curves) == 6
