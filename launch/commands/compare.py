"""`dist-train compare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dist_train.config.problems import printable, shown
from dist_train.config.stdout import aligned, tell
from dist_train.errors import DiskError, UserError, telling_why
from dist_train.rundir.runs import shown_path
from dist_train.rundir.strict_json import to_json

from .common import RUN, json_option

if TYPE_CHECKING:
    from dist_train.report.compare import Comparison

MOST_GROUPS = 8
"""That a terminal has columns for; --html and --json have all."""


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, **RUN)
@click.option("--metric", metavar="NAME", help="The figure to compare. Without it, eval.best.")
@click.option("--html", type=click.Path(), metavar="FILE", help="Also a page, curves over one another.")
@click.option("--require-better", is_flag=True, help="Exit code 1 unless the second config is better than the first.")
@json_option("One JSON object on stdout.")
def command(runs: tuple[str, ...], metric: str | None, html: str | None, require_better: bool, as_json: bool) -> None:
    """What differs between runs, and whether one config is better than another.

    Runs that differ in nothing but their seed are one group: A, B, … in the order in which they are named. Each group
    is compared with A, over the seeds that both have, and unpaired beside it. A folder stands for the runs in it.
    """
    from dist_train.report import compare_page
    from dist_train.report.compare import compare
    from dist_train.report.compare_words import comparison_record

    comparison = compare([Path(run) for run in runs], metric)
    if require_better and len(comparison.groups) != 2:
        raise UserError(f"--require-better takes runs of two configs besides the seed, not {len(comparison.groups)}")
    tell(to_json(comparison_record(comparison), indent=2) if as_json else _text(comparison))
    if html is not None:
        with telling_why(html, DiskError):
            compare_page.write_comparison(comparison, Path(html))
        if not as_json:
            tell(f"\n{shown_path(Path(html))}")
    sys.exit(int(require_better and not comparison.judgements[0].better))


def _text(comparison: "Comparison") -> str:
    from dist_train.report.compare_words import comparison_sentences, figures_of

    parts = []
    if comparison.differing:
        labels = [group.label for group in comparison.groups[:MOST_GROUPS]]
        rows = [
            (key, *(printable(shown(value), 40) for value in values[:MOST_GROUPS]))
            for key, values in comparison.differing
        ]
        parts.append(aligned([("what differs", *labels), *rows]))
    head, *rows_of_runs = figures_of(comparison)
    parts.append(aligned([head, *rows_of_runs], to_the_right=head[2:3] + head[4:]))
    text = "\n\n".join([*parts, "\n".join(comparison_sentences(comparison))])
    return "\n".join(printable(line, 4096) for line in text.split("\n"))  # names in it are from the runs
