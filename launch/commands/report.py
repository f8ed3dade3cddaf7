"""`dist-train report`."""

import json
import webbrowser
from pathlib import Path

import click

from dist_train.config.stdout import tell
from dist_train.errors import DiskError, UserError

from .common import json_option, run_argument


@click.command()
@run_argument
@click.option("--out", type=click.Path(), help="The file to write. Without it, report.html in the run.")
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
@json_option("The file's name in a JSON object on stdout.")
def command(target: str, out: str | None, opens: bool, as_json: bool) -> None:
    """Write a run on one page, which opens anywhere: curves, classes, starts, config. Prints the file's name."""
    from dist_train.report import write
    from dist_train.rundir.layout import RunDir
    from dist_train.rundir.runs import is_checkpoint, shown_path

    folder = Path(target)
    run_dir = folder.resolve().parent.parent if is_checkpoint(folder) else folder
    if not RunDir(run_dir).is_run():
        raise UserError(f"{target}: neither a run directory nor a checkpoint of one")
    path = Path(out) if out else RunDir(run_dir).report
    try:
        write(run_dir, path)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}; --out writes elsewhere") from None
    tell(json.dumps({"report": str(path)}) if as_json else shown_path(path))
    if opens and not webbrowser.open(path.resolve().as_uri()):
        raise UserError(f"no browser was found; the page is {path}")
