"""W&B's own process, `python -m dist_train.tracking.wandb`: the only code that imports wandb. See wandb_sink.py.

Reads JSON lines on stdin (wandb_messages.py), and writes some on stdout: {"offline": true} as soon as nothing waits for
the network, {"note": line for the user}, {"error": reason}, {"over": true}. Whatever wandb prints goes to stderr,
wandb/process.log in the run directory.

SIGTERM means hurry: an init or an upload under way is given up, and the data stays in the run directory. What needs no
network is never given up: on a busy machine it takes its time, and what is not written yet would be lost. SIGINT is
W&B's "stop this run" from the web page, and is passed on to the training, which saves and stops.
"""

import html
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

from dist_train.report.words import Row
from dist_train.rundir.codec import decode
from dist_train.rundir.growing import GrowingFile
from dist_train.rundir.runs import shown_path
from dist_train.tracking.wandb_messages import Begin, Panel, read_messages, tell_training

INIT_S = 15
"""An init that takes longer is given up for an offline run."""
LONGEST_INIT_S = 86_400
"""A day; the alarm that ends it has no room for more than some decades."""
LOCAL_INIT_S = 600  # needs no network, on a machine that may be busy
FLUSH_S = 1.0
"""Between updates of W&B's file in the run directory; with wandb's own 15 s, that much is lost in a kill."""
MOST_OF_THE_LOG = 2**20
"""Bytes that are sent at once."""
ENVIRONMENT = dict(os.environ)
"""As the user has set it: W&B's variables mean what its documentation says, unless the config overrides them."""


class _Hurry(Exception):
    """SIGTERM or SIGALRM came while something was under way that may be given up."""


class _Signals:
    """Turns SIGTERM and SIGALRM into _Hurry inside `may_give_up` blocks, and ignores them elsewhere."""

    def __init__(self, training_pid: int) -> None:
        self._may_give_up = False
        self.hurried = False
        signal.signal(signal.SIGTERM, self._hurry)
        signal.signal(signal.SIGALRM, self._hurry)
        signal.signal(signal.SIGINT, lambda *_: os.kill(training_pid, signal.SIGINT))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    @contextmanager
    def may_give_up(self, after_s: int = 0) -> Iterator[None]:
        """Raises _Hurry in the block on a signal, or after `after_s` seconds unless that is 0."""
        self._may_give_up = True
        signal.alarm(after_s)
        try:
            yield
        finally:
            signal.alarm(0)
            self._may_give_up = False

    def _hurry(self, *_: Any) -> None:
        self.hurried = True
        if self._may_give_up:
            raise _Hurry("it took too long")


def main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)
    signals = _Signals(os.getppid())
    messages = read_messages(os.getppid())
    first = next(messages, None)
    if first is None:
        return
    begin = decode(Begin, first["begin"])
    # Before the import: these hold for wandb's every part, in any version.
    os.environ.update(WANDB_SILENT="true", WANDB_CONSOLE="off")
    # For what waits to be uploaded, else in the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", ENVIRONMENT.get("WANDB_DIR") or begin.data_dir)
    sys.argv = begin.argv
    try:
        _serve(begin, messages, signals, out)
    except BaseException as error:
        tell_training(out, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


def _serve(begin: Begin, messages: Iterator[Row], signals: _Signals, out: int) -> None:
    import wandb

    if wandb.setup().settings.mode == "disabled":  # by `wandb disabled`, in its settings file
        tell_training(out, over=True)
        return
    run = _open(begin, signals, out)
    run.define_metric("train/step")
    run.define_metric("*", step_metric="train/step")
    _save_code(run, begin.code)
    exit_code = 1  # an input that ends without a word is a training that was killed
    log = GrowingFile(Path(begin.log), begin.log_from)
    for message in messages:
        if "log" in message:
            built = [build(message[kind]) for kind, build in _PANELS.items() if message.get(kind)]
            run.log(dict(ChainMap(message["log"], *built)))
        if "checkpoint" in message:
            _log_checkpoint(run, **message["checkpoint"])
        if text := log.news(MOST_OF_THE_LOG):
            run.write_logs(text.decode(errors="replace"))
        if "summary" in message:
            run.summary.update(message["summary"])
        if "finish" in message:
            exit_code = message["finish"]
            break
    _close(run, exit_code, signals, out)


def _open(begin: Begin, signals: _Signals, out: int) -> Any:
    """An online run if that is wanted and possible, else an offline one; reports which."""
    reason = ""
    if begin.mode != "offline" and not signals.hurried:
        try:
            with signals.may_give_up(2 * _init_s()):
                if has_credentials():
                    run = _init(begin, "online")
                    tell_training(out, note=f"wandb  {run.url}")
                    return run
            reason = "no credentials (wandb login), " if begin.mode == "online" else ""
        except Exception as error:  # no network, a refused key, a project that is not ours: all end in an offline run
            print(f"no online run: {error!r}", file=sys.stderr)
            reason = f"not reachable ({_short(error)}), "
            _stop_service(signals)
    tell_training(out, offline=True)
    run = _init(begin, "offline")
    tell_training(out, note=f"wandb  {reason}offline; to upload: wandb sync {shown_path(Path(run.settings.sync_dir))}")
    return run


def _stop_service(signals: _Signals) -> None:
    """Ends wandb's service, which has the run's id in use and may go on trying for minutes; the next init starts one.

    Killed, because asking it waits until it has given up.
    """
    import wandb

    _kill_service()
    try:
        with signals.may_give_up(INIT_S):
            wandb.teardown()
    except (Exception, SystemExit) as error:  # it exits with the exit code of the service
        print(f"teardown: {error!r}", file=sys.stderr)


def _kill_service() -> None:
    """wandb's service is this process's only child."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def _init_s() -> int:
    """WANDB_INIT_TIMEOUT, else ours; for one without end as well as for nonsense."""
    with suppress(ValueError, OverflowError):
        return min(LONGEST_INIT_S, max(1, round(float(ENVIRONMENT.get("WANDB_INIT_TIMEOUT", "")))))
    return INIT_S


def has_credentials() -> bool:
    """Whether wandb finds a key or token in the environment, a settings file or netrc. Asks nobody, no network."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def _init(begin: Begin, mode: Literal["online", "offline"]) -> Any:
    import wandb

    settings: Row = {
        "silent": True,
        "console": "off",
        "program": begin.argv[0],
        "x_stats_pid": begin.training_pid,
        "x_transaction_log_flush_interval": FLUSH_S,
        "x_service_wait": LOCAL_INIT_S,
    }
    fields = wandb.Settings.model_fields  # the x_ ones come and go with wandb's versions
    wanted = [key for key in settings if key in fields and f"WANDB_{key.upper()}" not in ENVIRONMENT]
    ours = {key: settings[key] for key in wanted}
    ours["init_timeout"] = _init_s() if mode == "online" else LOCAL_INIT_S  # where wandb can do with the variable
    known = wandb.setup().settings  # W&B's variables (WANDB_PROJECT, …) and settings files
    theirs = {"name": known.run_name, "project": known.project, "dir": ENVIRONMENT.get("WANDB_DIR")}
    defaults = {key: value for key, value in begin.defaults.items() if not theirs[key]}
    return wandb.init(
        mode=mode,
        resume="allow",
        allow_val_change=True,  # a resumed run may have another world size
        settings=wandb.Settings(**ours),
        **{**defaults, **begin.given},
    )


def _close(run: Any, exit_code: int, signals: _Signals, out: int) -> None:
    import wandb

    folder, offline = Path(run.settings.sync_dir), run.offline
    try:
        with nullcontext() if offline else signals.may_give_up():
            run.finish(exit_code=exit_code)
            wandb.teardown()
    except _Hurry:
        time.sleep(2 * FLUSH_S)
        _kill_service()
        tell_training(out, note=f"wandb  not all is uploaded; to go on with it: wandb sync {shown_path(folder)}")
        tell_training(out, over=True)
        os._exit(0)  # past wandb's exit hook, which would wait for the upload after all
    tell_training(out, over=True)


def _table(found: Panel) -> Any:
    import wandb

    return wandb.Table(columns=[*found["columns"]], data=[*found["rows"]])


def _chart(found: Panel) -> Row:
    """W&B's confusion matrix from counts; its own function wants a list with every sample."""
    import wandb

    chart = wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=_table(found),
        fields={column: column for column in found["columns"]},
        string_fields={"title": "Confusion matrix"},
    )
    return {found["key"]: chart}


def _per_class(found: Panel) -> Row:
    """A bar for each class, over a table with all its figures."""
    import wandb

    shown = "f1" if "f1" in found["columns"] else found["columns"][1]
    return {found["key"]: wandb.plot.bar(_table(found), "class", shown, title=f"{shown} of each class")}


def _worst(found: Panel) -> Row:
    """The samples of highest loss as a table; its first column holds pictures."""
    rows = [[_image(picture), *rest] for picture, *rest in found["rows"]]
    return {found["key"]: _table({**found, "rows": rows})}


def _image(path: str | None) -> Any:
    import wandb

    return wandb.Image(path) if path and Path(path).is_file() else None


def _save_code(run: Any, files: dict[str, str]) -> None:
    """For the "Code" tab. Copied together first: wandb would walk through all that lies in the working folder."""
    if run.settings.save_code is False or run.settings.disable_code:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files.items():
            with suppress(OSError):  # gone meanwhile
                to = Path(folder, name)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
        run.log_code(folder, name=f"source-{run.id}", include_fn=lambda path: True)


def _log_checkpoint(run: Any, path: str, aliases: list[str], metadata: Row) -> None:
    import wandb

    model = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
    try:
        model.add_dir(path)
        run.log_artifact(model, aliases=["latest", *aliases])
    except (OSError, ValueError) as error:  # newer ones have taken its place
        print(f"{path} is not kept as an artifact: {error}", file=sys.stderr)


def _texts(texts: list[str]) -> Row:
    import wandb

    return {f"texts/{number}": wandb.Html(f"<pre>{html.escape(text)}</pre>") for number, text in enumerate(texts)}


def _images(pictures: dict[str, str]) -> Row:
    """What callbacks have logged; a full disk has not taken all files."""
    return {key: image for key, path in pictures.items() if (image := _image(path)) is not None}


_PANELS: dict[str, Callable[[Any], Row]] = {"confusion": _chart, "per_class": _per_class, "worst": _worst}
_PANELS |= {"texts": _texts, "pictures": _images}


def _short(error: Exception) -> str:
    """The last clause of an error: wandb's begin with what it was doing, and end with what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rsplit(": ", 1)[-1][:120]


if __name__ == "__main__":
    main()
