"""The page of a run whose launch has ended, however it ended."""

from contextlib import suppress

from dist_train.errors import ExitCode

from ..console import mark, say
from ..plan import LaunchPlan


def write_report(plan: LaunchPlan, code: int) -> None:
    """On the first node, of a training that has begun. No page is worth an exit code: an error in one is a line."""
    if not plan.is_training or plan.node not in (0, None) or code == ExitCode.CONFIG:
        return
    from dist_train import report

    try:
        with suppress(OSError):  # a disk that refuses has been told of
            report.write(plan.folder)
    except Exception as error:
        say(f"{mark('!', 'yellow')} there is no report: {type(error).__name__}: {error}")
