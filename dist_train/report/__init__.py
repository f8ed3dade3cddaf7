"""report.html: a run on one page, made from the files of its directory. No torch here."""

from pathlib import Path

from dist_train.rundir.files import replacing
from dist_train.rundir.layout import RunDir


def write(run_dir: Path, to: Path | None = None) -> Path:
    """Makes the page of a run, living or dead, and replaces the one before; returns its path.

    Raises:
        OSError: when it cannot be written.
    """
    # Here, since a rank knows of budgets and does without what a page needs: YAML, pydantic, the schema.
    from dist_train.report.facts import gather
    from dist_train.report.page import render

    path = to or RunDir(run_dir).report
    text = render(gather(run_dir))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
