"""The page while a run goes on: made by a process of its own, after an evaluation."""

import numpy as np

from dist_train.rundir.codec import read_json
from dist_train.rundir.layout import RunDir
from dist_train.tracking import report_sink
from dist_train.tracking.report_sink import ReportSink
from tests.unit.dist_train.tracking.runs import config, facts

ROW = {"step": 3, "split": "evaluation", "loss": 1.0}
COUNTS = np.array([[5, 2], [0, 7]])


def begun(folder, monkeypatch, pause):
    monkeypatch.setattr(report_sink, "PAUSE_S", pause)
    sink = ReportSink(RunDir(folder), makes_the_last=False)
    sink.begin(facts(folder, config()), print)
    return sink


def test_an_evaluation_leaves_its_counts_and_a_page(tmp_path, monkeypatch):
    sink = begun(tmp_path, monkeypatch, 0.0)
    sink.log_evaluation(ROW, COUNTS)
    assert sink._process.wait(60) == 0
    assert RunDir(tmp_path).report.read_text().endswith("</html>\n")
    assert read_json(RunDir(tmp_path).evaluation("evaluation"))["cells"] == [[1, 1, 7], [0, 0, 5], [0, 1, 2]]
    sink.tick(4)
    sink.log_evaluation(ROW, COUNTS)  # the next one, which the end does not wait for
    sink.close()


def test_a_run_that_has_just_begun_starts_no_process(tmp_path, monkeypatch):
    sink = begun(tmp_path, monkeypatch, 30.0)
    sink.log_evaluation(ROW, None)
    assert sink._process is None and not RunDir(tmp_path).report.exists()
