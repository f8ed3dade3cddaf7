"""Numbers and lines as people read them; what terminal and plain console share."""

import os
from pathlib import Path
from typing import Any

from dist_train.config.problems import printable
from dist_train.report.words import SHARES, seconds
from dist_train.rundir.layout import RunDir, is_kept, rank_log
from dist_train.rundir.runs import shown_path
from dist_train.tracking.base import POSITION, Interval, Row, RunFacts, SessionOutcome, metrics_of, prefix_of

_NUMBERS = {"perplexity": "perplexity", "bits_per_byte": "bits/byte"}
"""Others that are shown beside these."""
_WHOLE = ("samples_per_s", "tokens_per_s", "seconds_left")
_TEXT = 90
"""Characters of a text that the console shows."""
_ASCII = str.maketrans(
    {"⏎": "/", "✓": "ok", "✗": "x", "·": "-", "×": "x", "↻": ">", "…": "...", "━": "=", "╸": "-", "\u2009": " "}
)


def ascii_only(text: str) -> str:
    """`text` for an output that knows ASCII alone."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def clock(value: float) -> str:
    """0:07, 12:34, 1:02:03."""
    whole = round(value)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """A metric to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def header_lines(facts: RunFacts) -> list[str]:
    """The first lines of a run: what is trained, on which ranks and data, and where the run lies."""
    count = facts.parameters
    parameters = f"{count / 1e6:,.1f} M parameters" if count >= 50_000 else f"{count:,} parameters"
    batch = f"global batch {facts.global_batch:,}"
    if facts.microbatches > 1:
        batch += f" = {facts.microbatches:,} microbatches of {facts.global_batch // facts.microbatches:,}"
    samples = f"{facts.train_samples:,} train / {facts.evaluation_samples:,} eval"
    parts = [facts.name, f"{facts.model} {parameters}", _ranks(facts), batch, samples]
    lines = [" · ".join(parts), f"run  {shown_path(facts.run_dir)}"]
    if facts.resumed_from is not None:
        origin = shown_path(Path(facts.resumed_from)) if os.sep in facts.resumed_from else facts.resumed_from
        lines.append(f"↻ from step {facts.first_step:,} of {facts.total_steps:,}  ({origin})")
    return lines


def _ranks(facts: RunFacts) -> str:
    where = "CPU" if facts.device.startswith("cpu") else "GPU" if facts.device.startswith("cuda") else facts.device
    count = "1 rank" if facts.world_size == 1 else f"{facts.world_size:,} ranks"
    nodes = f" of {facts.nodes:,} nodes" if facts.nodes > 1 else ""
    return f"{count}{nodes} on {where} ({facts.backend})"


def measures(row: Row) -> list[tuple[str, str]]:
    """(label, value) of the metrics worth a place on the screen: loss and shares; else the first few there are."""
    found = dict(metrics_of(row))
    known = [(label, f"{100 * found[key]:.1f}") for key, label in SHARES.items() if key in found]
    if known:
        label, first = known[0]
        known[0] = (label, f"{first} %")
        known += [(label, number(found[key])) for key, label in _NUMBERS.items() if key in found]
        return ([("loss", number(found["loss"]))] if "loss" in found else []) + known
    return [(key, number(value)) for key, value in list(found.items())[:5]]


def joined(pairs: list[tuple[str, str]]) -> str:
    return "  ".join(f"{label} {value}" for label, value in pairs)


def summary(facts: RunFacts, outcome: SessionOutcome) -> list[str]:
    """The last lines of a session; none after a failure, which is reported where its reason is known."""
    if outcome.status == "failed":
        return []
    report = [f"  report      {shown_path(RunDir(facts.run_dir).report)}"] * is_kept(facts.run_dir)
    if outcome.status == "stopped":
        if not is_kept(facts.run_dir):
            return [*_broken(facts, outcome), "stopped"]
        promise = "   (same bits as if it had not stopped)" if facts.config.exact else ""
        stopped = f"stopped. To go on: dist-train train --resume {shown_path(facts.run_dir)}{promise}"
        return [*_broken(facts, outcome), stopped, *report]
    time = [f"  time        {outcome.time}"] if outcome.time else []
    return [_done(facts, outcome), *_broken(facts, outcome), *time, *report, *_checkpoint(facts, outcome)]


def _broken(facts: RunFacts, outcome: SessionOutcome) -> list[str]:
    if not outcome.broken:
        return []
    log = shown_path(rank_log(RunDir(facts.run_dir).logs, 0))
    count = f"{outcome.broken:,} of {facts.train_samples:,} training samples"
    return [f"  broken      {count}: others took their place; {log} has their names"]


def _done(facts: RunFacts, outcome: SessionOutcome) -> str:
    line = f"✓ done in {seconds(outcome.seconds)}"
    hidden = {"loss", "top-5"} if facts.classes is not None and len(facts.classes) <= 10 else {"loss"}
    pairs = [pair for pair in measures(outcome.metrics) if pair[0] not in hidden] or measures(outcome.metrics)
    if outcome.best and outcome.best["metric"] not in SHARES and outcome.best["metric"] in outcome.metrics:
        name = outcome.best["metric"]  # what the run was about stands first
        pairs = [(name, number(outcome.metrics[name])), *(pair for pair in pairs if pair[0] != name)]
    if not pairs:
        return line
    split = outcome.metrics.get("split", "evaluation")
    where = "" if split == "evaluation" else f"{prefix_of(split)} "
    head = f"{line}: {where}{joined(pairs[:1])}"
    best = _best(facts, outcome)
    rest = joined(pairs[1:])
    return "   ".join(part for part in (f"{head}  ({best})" if best else head, rest) if part)


def _best(facts: RunFacts, outcome: SessionOutcome) -> str:
    if not outcome.best:
        return ""
    metric, value, step = outcome.best["metric"], outcome.best["value"], outcome.best["step"]
    label, epoch = SHARES.get(metric, metric), facts.epoch_of(step)
    shown = f"{100 * value:.1f} %" if metric in SHARES else number(value)
    if outcome.metrics.get("split", "evaluation") != "evaluation":
        return f"checkpoint of epoch {epoch}, evaluation {label} {shown}"
    return f"best at epoch {epoch}" if outcome.metrics.get(metric) == value else f"best {label} {shown}, epoch {epoch}"


def _checkpoint(facts: RunFacts, outcome: SessionOutcome) -> list[str]:
    if outcome.checkpoint is None:
        return []
    path = shown_path(outcome.checkpoint)
    return [f"  checkpoint  {path}", f"  try it      dist-train predict {path} INPUT..."]


def plain_interval(interval: Interval) -> str:
    """One key=value line for machines and log files."""
    values = {**interval.summary, **interval.speeds, "seconds_left": interval.seconds_left}
    return "train " + _key_values(values)


def plain_evaluation(row: Row) -> str:
    position = {key: row[key] for key in ("split", *POSITION) if key in row}
    return "evaluation " + _key_values({**position, **dict(metrics_of(row))})


def text_lines(row: Row) -> list[str]:
    """The beginning of each text that a language model has written, in one line."""
    return [f"  text      {printable(' ⏎ '.join(text.strip().splitlines()), _TEXT)}" for text in row.get("texts", ())]


def _key_values(values: dict[str, Any]) -> str:
    texts = []
    for key, value in values.items():
        if isinstance(value, float):
            texts.append(f"{key}={value:{'.0f' if key in _WHOLE else '.6g'}}")
        elif isinstance(value, int | str) and not isinstance(value, bool):
            texts.append(f"{key}={value}")
    return " ".join(texts)
