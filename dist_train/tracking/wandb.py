"""W&B's own process, `python -m dist_train.tracking.wandb`: the only code that imports wandb. See wandb_sink.py.

Reads JSON lines on stdin: {"begin": …} first, then {"log": {…}, "confusion": {…}, "pictures": {…}}, at the end
{"summary": {…}, "finish": exit code}. Writes JSON lines on stdout: {"note": line for the user}, {"error": reason},
{"over": true}. Whatever wandb prints goes to stderr, which is wandb/process.log in the run directory.

SIGTERM means hurry: an init or an upload under way is given up, and the data stays in the run directory. SIGINT is
W&B's "stop this run" from the web page, and is passed on to the training, which saves and stops.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from dist_train.rundir.runs import shown_path

INIT_S = 15
"""An init that takes longer is given up for an offline run."""
LONGEST_INIT_S = 86_400
"""A day; the alarm that ends it has no room for more than some decades."""
FLUSH_S = 1.0
"""Between updates of W&B's file in the run directory; with wandb's own 15 s, that much is lost in a kill."""
ORPHAN_CHECK_S = 5.0
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
    messages = _messages(os.getppid())
    begin = next(messages, {}).get("begin")
    if begin is None:
        return
    # Before the import: these hold for wandb's every part, in any version.
    os.environ.update(WANDB_SILENT="true", WANDB_CONSOLE="off")
    sys.argv = begin["argv"]
    try:
        _serve(begin, messages, signals, out)
    except BaseException as error:
        _say(out, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


def _serve(begin: dict[str, Any], messages: Iterator[dict[str, Any]], signals: _Signals, out: int) -> None:
    import wandb

    if wandb.setup().settings.mode == "disabled":  # by `wandb disabled`, in its settings file
        _say(out, over=True)
        return
    run = _open(begin, signals, out)
    run.define_metric("train/step")
    run.define_metric("*", step_metric="train/step")
    exit_code = 1  # an input that ends without a word is a training that was killed
    for message in messages:
        if "log" in message:
            run.log({**message["log"], **_chart(message.get("confusion")), **_images(message.get("pictures", {}))})
        if "summary" in message:
            run.summary.update(message["summary"])
        if "finish" in message:
            exit_code = message["finish"]
            break
    _close(run, exit_code, signals, out)


def _open(begin: dict[str, Any], signals: _Signals, out: int) -> Any:
    """An online run if that is wanted and possible, else an offline one; reports which."""
    reason = ""
    if begin["mode"] != "offline" and not signals.hurried:
        try:
            with signals.may_give_up(2 * _init_s()):
                if has_credentials():
                    run = _init(begin, "online")
                    _say(out, note=f"wandb  {run.url}")
                    return run
            reason = "no credentials (wandb login), " if begin["mode"] == "online" else ""
        except Exception as error:  # no network, a refused key, a project that is not ours: all end in an offline run
            print(f"no online run: {error!r}", file=sys.stderr)
            reason = f"not reachable ({_short(error)}), "
            _stop_service(signals)
    with signals.may_give_up(2 * _init_s()):
        run = _init(begin, "offline")
    _say(out, note=f"wandb  {reason}offline; to upload: wandb sync {shown_path(Path(run.settings.sync_dir))}")
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


def _init(begin: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    import wandb

    settings = {
        "silent": True,
        "console": "off",
        "program": begin["argv"][0],
        "x_stats_pid": begin["training_pid"],
        "x_transaction_log_flush_interval": FLUSH_S,
    }
    fields = wandb.Settings.model_fields  # the x_ ones come and go with wandb's versions
    ours = {
        key: value for key, value in settings.items() if key in fields and f"WANDB_{key.upper()}" not in ENVIRONMENT
    }
    ours["init_timeout"] = _init_s()  # as the variable says, where wandb can do with that
    known = wandb.setup().settings  # W&B's variables (WANDB_PROJECT, …) and settings files
    theirs = {"name": known.run_name, "project": known.project, "dir": ENVIRONMENT.get("WANDB_DIR")}
    defaults = {key: value for key, value in begin["defaults"].items() if not theirs[key]}
    return wandb.init(
        mode=mode,
        resume="allow",
        allow_val_change=True,  # a resumed run may have another world size
        settings=wandb.Settings(**ours),
        **{**defaults, **begin["given"]},
    )


def _close(run: Any, exit_code: int, signals: _Signals, out: int) -> None:
    import wandb

    folder, offline = Path(run.settings.sync_dir), run.offline
    try:
        with signals.may_give_up():
            run.finish(exit_code=exit_code)
            wandb.teardown()
    except _Hurry:
        time.sleep(2 * FLUSH_S)
        _kill_service()
        if not offline:
            _say(out, note=f"wandb  not all is uploaded; to go on with it: wandb sync {shown_path(folder)}")
        _say(out, over=True)
        os._exit(0)  # past wandb's exit hook, which would wait for the upload after all
    _say(out, over=True)


def _chart(confusion: dict[str, Any] | None) -> dict[str, Any]:
    """W&B's confusion matrix from counts; its own function wants a list with every sample."""
    import wandb

    if confusion is None:
        return {}
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    chart = wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=columns, data=confusion["cells"]),
        fields={str(column): str(column) for column in columns},
        string_fields={"title": "Confusion matrix"},
    )
    return {confusion["key"]: chart}


def _images(pictures: dict[str, str]) -> dict[str, Any]:
    """What callbacks have logged, by the files that it is kept in, which a full disk has not taken."""
    import wandb

    return {key: wandb.Image(path) for key, path in pictures.items() if Path(path).is_file()}


def _messages(parent: int) -> Iterator[dict[str, Any]]:
    """The lines of stdin as they come; ends with it, or with the parent.

    A data worker forked from the training holds the pipe's other end too, so the pipe alone would not show its death.
    """
    rest = b""
    while True:
        if not select.select([0], [], [], ORPHAN_CHECK_S)[0]:
            if os.getppid() != parent:
                return
            continue
        chunk = os.read(0, 2**20)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _short(error: Exception) -> str:
    """The last clause of an error: wandb's begin with what it was doing, and end with what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rsplit(": ", 1)[-1][:120]


def _say(out: int, **message: Any) -> None:
    with suppress(BrokenPipeError):  # a training that is gone still gets its last rows written, and its end
        os.write(out, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
