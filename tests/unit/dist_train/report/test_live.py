"""Lines of a training at every width: a figure is whole, or not there."""

import math
from itertools import product

from dist_train.report.live import Live, Piece, line, measures, most_important
from dist_train.report.plot import plot
from dist_train.report.words import number, telling
from tests.unit.dist_train.tracking.runs import EPOCH, TOTAL, config, evaluation_row, train_row

SPEEDS = {"samples_per_s": 4120.4}


def live(step: int = 7) -> Live:
    found = Live(config(), TOTAL, EPOCH, 0.0)
    found.add_steps([train_row(step)], train_row(step), SPEEDS, 7.4, 3.0)
    found.add_evaluation(evaluation_row(step), 2.0)
    return found


def figures(parts: list[Piece]) -> list[str]:
    return [str(part) for part in parts if set(part.text) - set("━╸")]


def test_at_no_width_is_a_figure_cut_and_the_bar_shrinks_first():
    for doing, width in product(("", "evaluating 42 %"), range(20, 160)):
        parts, wide = live().bar(width, 3.0, doing), live().bar(1000, 3.0, doing)
        text, bar = line(parts), line(parts).count("━") + line(parts).count("╸")
        assert len(text) <= width and set(figures(parts)) <= set(figures(wide)), width
        assert 4 <= bar <= 24 and (len(text) == width or bar == 24), "what room there is belongs to the bar"
        assert len(figures(parts)) == len(figures(wide)) or bar < 24
        assert width < 44 or "loss 0.23" in figures(parts) or doing
        evaluation = live().add_evaluation(evaluation_row(8), 3.0)
        assert len(line(most_important(evaluation, width))) <= max(width, 28)
        assert "accuracy 88.9 %" in line(most_important(evaluation, width))


def test_the_time_left_runs_down_and_the_clock_goes_on():
    assert line(live().bar(200, 3.0)).endswith("  0:03<0:07")
    assert line(live().bar(200, 8.0)).endswith("  0:08<0:02")
    assert line(live().bar(200, 30.0)).endswith("  0:30")  # later than was thought: nobody knows


def test_the_mark_is_at_every_evaluation_that_is_the_best_so_far():
    found = Live(config(), TOTAL, EPOCH, 0.0, best=0.5)
    values = [0.4, 0.6, math.nan, 0.6, 0.7]
    marks = [found.add_evaluation({**evaluation_row(10), "accuracy": value}, 1.0)[0].text for value in values]
    assert [mark.strip() for mark in marks] == ["", "★", "", "", "★"]


def test_figures_that_say_nothing_are_left_out():
    row = {"step": 3, "split": "evaluation", "accuracy": 0.5, "top5": 1.0, "f1_micro": 0.5, "f1": 0.4, "ok": True}
    assert telling(row, 5) == telling({**row, "per_class": {"f1": [0.4] * 5}}) == {"accuracy": 0.5, "f1": 0.4}
    assert telling(row, 6) == {"accuracy": 0.5, "top5": 1.0, "f1": 0.4}
    assert telling({**row, "f1_micro": 0.6}, 5)["f1_micro"] == 0.6
    assert measures(row, 5) == [("accuracy", "accuracy", "50.0 %"), ("f1", "F1", "40.0")]


def test_numbers_have_three_digits():
    found = [number(value) for value in (0.023456, 6659.4, 12, 1234567, 0.1, 1e-7, math.inf, 999.9)]
    assert found == ["0.0235", "6,659", "12", "1,234,567", "0.1", "1e-07", "inf", "1e+03"]


def test_a_curve_goes_from_corner_to_corner():
    rising = plot("up", [(x, float(x)) for x in range(50)], 30, 4)
    assert rising[0].strip() == "up" and all(len(row) <= 30 for row in rising)
    assert rising[1].startswith("49 ") and rising[4].startswith(" 0 ")
    assert rising[1][-1] != "\u2800" and rising[4][3] != "\u2800" and rising[1][3] == "\u2800"
    assert plot("flat", [(1, 2.0), (2, 2.0)], 20, 3)[3] == "2 " + 18 * "⣀"
    assert plot("one", [(1, 2.0)], 20, 3)[3] == "2 ⡀" + 17 * "\u2800"
