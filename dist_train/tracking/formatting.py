"""The first and the last lines of a session; what terminal and plain console share."""

import os
import textwrap
from pathlib import Path

from dist_train.config.metrics import SHARES
from dist_train.config.problems import printable
from dist_train.report.live import Piece, line, measures, most_important
from dist_train.report.words import figure, number, seconds
from dist_train.rundir.layout import RunDir, is_kept, rank_log
from dist_train.rundir.runs import shown_path
from dist_train.tracking.base import Row, RunFacts, SessionOutcome, prefix_of

_STICKY = "\xa0"
"""A blank that no line is broken at."""
_TEXT = 90
"""Characters of a text that the console shows."""
_ASCII = str.maketrans({"⏎": "/", "✓": "ok", "✗": "x", "·": "-", "×": "x", "↻": ">", "…": "..."})
_ASCII |= str.maketrans({"━": "=", "╸": "-", "★": "*", "\u2009": " "})


def ascii_only(text: str) -> str:
    """`text` for an output that knows ASCII alone."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def header_lines(facts: RunFacts, room: int | None = None) -> list[str]:
    """The first lines of a run: what is trained, on which ranks and data, and where the run lies.

    Args:
        room: cells of a line; a path is never cut for it.
    """
    count = facts.parameters
    parameters = f"{count / 1e6:,.1f} M parameters" if count >= 50_000 else f"{count:,} parameters"
    batch = f"global batch {facts.global_batch:,}"
    if facts.microbatches > 1:
        batch += f" = {facts.microbatches:,} microbatches of {facts.global_batch // facts.microbatches:,}"
    samples = f"{facts.train_samples:,} train / {facts.evaluation_samples:,} eval"
    parts = [facts.name, f"{facts.model} {parameters}", _ranks(facts), batch, samples]
    whole = " · ".join(part.replace(" ", _STICKY) for part in parts)
    wrapped = textwrap.wrap(whole, room or len(whole), subsequent_indent="  ", break_on_hyphens=False)
    lines = [*(line.replace(_STICKY, " ") for line in wrapped), f"run  {shown_path(facts.run_dir)}"]
    if facts.resumed_from is not None:
        origin = shown_path(Path(facts.resumed_from)) if os.sep in facts.resumed_from else facts.resumed_from
        lines.append(f"↻ from step {facts.first_step:,} of {facts.total_steps:,}  ({origin})")
    return lines


def _ranks(facts: RunFacts) -> str:
    where = "CPU" if facts.device.startswith("cpu") else "GPU" if facts.device.startswith("cuda") else facts.device
    count = "1 rank" if facts.world_size == 1 else f"{facts.world_size:,} ranks"
    nodes = f" of {facts.nodes:,} nodes" if facts.nodes > 1 else ""
    return f"{count}{nodes} on {where} ({facts.backend})"


def summary(facts: RunFacts, outcome: SessionOutcome, room: int | None = None) -> list[str]:
    """The last lines of a session, the report's last; none after a failure, which is reported where its reason is
    known."""
    if outcome.status == "failed":
        return []
    report = [f"  report      {shown_path(RunDir(facts.run_dir).report)}"] * is_kept(facts.run_dir)
    if outcome.status == "stopped":
        if not is_kept(facts.run_dir):
            return [*_broken(facts, outcome), *_cached(outcome), "stopped"]
        promise = "   (same bits as if it had not stopped)" if facts.config.exact else ""
        again = f"stopped. To go on: dist-train train --resume {shown_path(facts.run_dir)}"
        fits = room is None or len(again + promise) <= room
        return [*_broken(facts, outcome), *_cached(outcome), again + promise * fits, *report]
    time = [f"  time        {outcome.time}"] if outcome.time else []
    return [
        _done(facts, outcome, room),
        *_broken(facts, outcome),
        *_cached(outcome),
        *time,
        *_checkpoints(facts, outcome),
        *report,
    ]


def _broken(facts: RunFacts, outcome: SessionOutcome) -> list[str]:
    if not outcome.broken:
        return []
    log = shown_path(rank_log(RunDir(facts.run_dir).logs, 0))
    count = f"{outcome.broken:,} of {facts.train_samples:,} training samples"
    return [f"  broken      {count}: others took their place; {log} has their names"]


def _cached(outcome: SessionOutcome) -> list[str]:
    """What data.cache did, and what of that is worth saying."""
    if not any(outcome.cached.values()):  # loading processes that a fork server starts count for themselves
        return []
    counted = {"decoded": 0, "read": 0} | outcome.cached
    more = "".join(f", {n:,} {what}" for what, n in counted.items() if n and what not in ("decoded", "read"))
    return [f"  cache       {counted['decoded']:,} images decoded, {counted['read']:,} read from it{more}"]


def _done(facts: RunFacts, outcome: SessionOutcome, room: int | None) -> str:
    done = f"✓ done in {seconds(outcome.seconds)}"
    found = measures(outcome.metrics, len(facts.classes) if facts.classes is not None else None)
    found = [one for one in found if one[0] != "loss"] or found
    if outcome.best and outcome.best.metric not in SHARES and outcome.best.metric in outcome.metrics:
        name = outcome.best.metric  # what the run was about stands first
        first = (name, name, number(outcome.metrics[name]))
        found = [first, *(one for one in found if one[0] != name)]
    if not found:
        return done
    split = outcome.metrics.get("split", "evaluation")
    where = "" if split == "evaluation" else f"{prefix_of(split)} "
    (_, label, value), best = found[0], _best(facts, outcome)
    parts = [Piece(text=f"{done}: {where}{label} {value}", gap=0), *[Piece(text=f"({best})", keep=50)] * bool(best)]
    parts += [
        Piece(label=label, text=value, keep=40 - place, gap=2 + (place == 0))
        for place, (_, label, value) in enumerate(found[1:])
    ]
    return line(parts if room is None else most_important(parts, room))


def _best(facts: RunFacts, outcome: SessionOutcome) -> str:
    if not outcome.best:
        return ""
    metric, value, epoch = outcome.best.metric, outcome.best.value, facts.epoch_of(outcome.best.step)
    label, text = SHARES.get(metric, metric), figure(metric, value)
    if outcome.metrics.get("split", "evaluation") != "evaluation":
        return f"checkpoint of epoch {epoch}, evaluation {label} {text}"
    return f"best at epoch {epoch}" if outcome.metrics.get(metric) == value else f"best {label} {text}, epoch {epoch}"


def _checkpoints(facts: RunFacts, outcome: SessionOutcome) -> list[str]:
    if outcome.checkpoint is None:
        return []
    best = RunDir(facts.run_dir).checkpoint(outcome.best.step) if outcome.best else None
    others = [f"  best        {shown_path(best)}"] if best and best != outcome.checkpoint and best.is_dir() else []
    mark = "  (the best)" if best == outcome.checkpoint else ""
    try_it = f"  try it      dist-train predict {shown_path(facts.run_dir)} INPUT..."
    return [*others, f"  checkpoint  {shown_path(outcome.checkpoint)}{mark}", try_it]


def text_lines(row: Row) -> list[str]:
    """The beginning of each text that a language model has written, in one line."""
    return [f"  text      {printable(' ⏎ '.join(text.strip().splitlines()), _TEXT)}" for text in row.get("texts", ())]
