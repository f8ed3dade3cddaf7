"""The report of a run whose launch has ended, however it ended."""

from contextlib import suppress

from dist_train.errors import ExitCode

from ..console import mark, say
from ..plan import LaunchPlan


def write_report(plan: LaunchPlan, code: int) -> None:
    """Writes it on the first node, if the training has begun. An error in it is one line, and changes no exit code."""
    if not plan.is_training or plan.node not in (0, None) or code == ExitCode.CONFIG:
        return
    from dist_train import report

    try:
        with suppress(OSError):  # the user was told of a disk that refuses
            report.write(plan.folder)
    except Exception as error:
        say(f"{mark('!', 'yellow')} there is no report: {type(error).__name__}: {error}")
