"""`dist-train evaluate`: the metrics of a saved model, on any number of ranks."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train import tasks
from dist_train.checkpoint.resume import broadcast_checkpoint
from dist_train.checkpoint.store import locate
from dist_train.commands.common import reporting
from dist_train.config.problems import printable
from dist_train.config.requests import EvaluateRequest, read_request
from dist_train.config.schema import RunConfig
from dist_train.config.stdout import aligned, tell
from dist_train.data import datasets
from dist_train.data.datasets import Splits
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import evaluate
from dist_train.gallery import Gallery
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.report.words import figure, label, telling
from dist_train.rundir.strict_json import to_json
from dist_train.trained import config_of_run, saved_model
from dist_train.worker import set_deterministic

MOST_CLASSES = 20
"""Of more, the worst ones are shown."""


def main(request: EvaluateRequest) -> int:
    target = Path(request.target)
    with reporting():
        config = config_of_run(target, request.overrides, trusts=request.trust)
        row = _evaluate(config, target, request.split)
    if Ranks.from_environment().is_first:
        tell(to_json(row) if request.as_json else _text(row))
    return ExitCode.DONE


def _evaluate(config: RunConfig, target: Path, split: str) -> dict[str, object]:
    set_deterministic(config)
    with ProcessGroup(Ranks.from_environment(), config.distributed) as group:
        found = group.run_on_rank0(lambda: locate(target, lambda line: print(line, file=sys.stderr), best=True))
        saved = broadcast_checkpoint(found, group)
        splits = _splits(config, split, saved.other["data"], group)
        dataset = getattr(splits, split)
        if dataset is None:
            raise UserError(f"{config.evaluated_data.name} has no {split} split")
        task = tasks.build(config.task, splits.classes, **splits.of_tokens)
        model = saved_model(config, saved, **splits.offered)
        result = evaluate(config, model.to(group.device), task, group, dataset)
        gallery = Gallery(config, splits, group, None)
        worst = gallery.row(split, result.worst, is_last=True) if group.ranks.is_first else {}
    if Ranks.from_environment().is_first:
        for one in result.broken:
            print(f"! {one.reason}; it is left out", file=sys.stderr)
    row = {"checkpoint": str(found.path), "step": saved.state.step, "split": split, **result.metrics}
    row |= {"broken_samples": len(result.broken)} if result.broken else {}
    confusion = {} if result.confusion is None else {"confusion": result.confusion.tolist()}
    return {**row, "classes": splits.classes, "per_class": result.per_class, **confusion, **worst}


def _splits(config: RunConfig, split: str, trained: Mapping[str, Any], group: ProcessGroup) -> Splits:
    """The data with this split, checked; that of the training need not be there where `eval.data` is another."""
    if config.eval.data is not None and split != "train":
        return datasets.build_evaluated(config.eval.data, trained, group.local_rank0_first)
    splits = datasets.build(config.data, group.local_rank0_first)
    datasets.check_alike(config.data.name, splits.saved, trained, sizes=False)
    return splits


def _text(row: Mapping[str, Any]) -> str:
    """One figure a line, and a table of the classes."""
    lines = [f"{row['checkpoint']}  {row['split']} split"]
    figures = {name: value for name, value in telling(row).items() if name not in ("step", "broken_samples")}
    lines += [f"  {label(name):<16} {figure(name, value)}" for name, value in figures.items()]
    columns = row["per_class"]
    if not columns:
        return "\n".join(lines)
    by, count = "f1" if "f1" in columns else next(iter(columns)), max(map(len, columns.values()))
    names = row["classes"] or range(count)
    order = list(range(count)) if count <= MOST_CLASSES else sorted(range(count), key=columns[by].__getitem__)
    cells = [[printable(str(names[one]), 40), *(figure(key, columns[key][one]) for key in columns)] for one in order]
    table = aligned([["class", *map(label, columns)], *cells[:MOST_CLASSES]], to_the_right=[*map(label, columns)])
    left_out = f"the {MOST_CLASSES} of {count:,} classes with the lowest {label(by)}; --json has all of them"
    return "\n".join([*lines, "", *([left_out] if count > MOST_CLASSES else []), table])


if __name__ == "__main__":
    sys.exit(main(read_request(EvaluateRequest, sys.argv[1:])))
