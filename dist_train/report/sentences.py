"""A run in a few sentences: did it work, is it overfitting, how fast was it."""

import statistics
from collections.abc import Iterator

from dist_train.report.curves import smoothed
from dist_train.report.facts import Facts, hang_in_words
from dist_train.report.words import figure, label, seconds

WORTH_SAYING = 0.05
"""Share by which the evaluation loss must have risen above its lowest before that is called overfitting."""


def headline(facts: Facts) -> str:
    """How it stands, in a few words."""
    state, ended = facts.state, facts.launches[-1].ended if facts.launches else None
    status = {"done": "Done", "stopped": "Stopped", "failed": "Failed"}.get(state.status or "", "")
    if not status or (status != "Done" and ended is not None and not ended.in_order):
        status = f"Ended: {ended.reason or 'nobody knows why'}" if ended is not None else "Running"
        status = "Failed" if ended is not None and ended.exit_code not in (0, None) and not ended.in_order else status
    step = state.step if state.step is None else max([state.step, *facts.steps.step[-1:]])
    at = f" at step {step:,} of {state.total_steps:,}" if state.step is not None and state.total_steps else ""
    return f"{status}{'' if state.status == 'done' else at}"


def sentences(facts: Facts) -> list[str]:
    """What there is to say, the most important first."""
    return [*_failure(facts), *_best(facts), *_gap(facts), *_pace(facts)]


def _failure(facts: Facts) -> Iterator[str]:
    verdict = facts.verdict or {}
    cause = verdict.get("cause")
    if isinstance(cause, dict) and cause.get("kind") == "hang":
        yield f"It was ended, for no rank went forward: {hang_in_words(cause)}."
    elif verdict.get("outcome") == "failed" and isinstance(cause, dict):
        report = cause.get("report") or {}
        what = ": ".join(str(report[key]) for key in ("type", "message") if report.get(key))
        who = f"rank {cause['rank']}" if isinstance(cause.get("rank"), int) else "it"
        yield f"{who[0].upper()}{who[1:]} ended it ({cause.get('kind')}){': ' + what if what else ''}."


def _best(facts: Facts) -> Iterator[str]:
    best, rows = facts.state.best, facts.evaluations.get("evaluation", [])
    if best is not None:
        last = "its last evaluation" if rows and rows[-1].get("step") == best.step else f"step {best.step:,}"
        epoch = f", epoch {best.step / facts.steps.per_epoch:.3g}" if facts.steps.per_epoch else ""
        yield f"Best {label(best.metric)}: {figure(best.metric, best.value)}, at {last}{epoch}."


def _gap(facts: Facts) -> Iterator[str]:
    rows = [row for row in facts.evaluations.get("evaluation", []) if isinstance(row.get("loss"), int | float)]
    means = smoothed(facts.steps.values.get("loss", []))
    if not rows or not means or means[-1] is None:
        return
    lowest, last = min(rows, key=lambda row: row["loss"]), rows[-1]
    at = dict(zip(facts.steps.step, means, strict=True))
    then, now = at.get(lowest["step"]), means[-1]
    if last["loss"] > lowest["loss"] * (1 + WORTH_SAYING) and then is not None and now < then:
        risen = 100 * (last["loss"] / lowest["loss"] - 1)
        yield (
            f"It overfits: since step {lowest['step']:,} the evaluation loss has risen by {risen:.0f} % while the "
            "training loss fell. Stop earlier, regularise more, or use more data."
        )
    else:
        yield f"Loss: {now:.4g} in training (smoothed), {last['loss']:.4g} in the last evaluation."


def _pace(facts: Facts) -> Iterator[str]:
    speeds = [speed for speed in facts.steps.speed if speed]
    if not speeds or not facts.launches or not facts.steps.step:
        return
    pace, begun = statistics.median(speeds), facts.launches[0].began.unix
    ended = facts.launches[-1].ended.unix if facts.launches[-1].ended else None
    wall = (ended or facts.steps.unix[-1]) - begun if begun else 0.0
    if wall <= 0:
        return
    useful = facts.steps.step[-1] * facts.steps.samples / pace
    yield (
        f"{seconds(wall)} from the first start to the last word; {pace:,.0f} samples/s while it trained; steps that "
        f"count took {min(100, 100 * useful / wall):.0f} % of the time."
    )
