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
from dist_train.config.stdout import tell
from dist_train.data import datasets
from dist_train.errors import ExitCode, UserError
from dist_train.evaluate import evaluate
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.strict_json import to_json
from dist_train.trained import config_of_run, saved_model
from dist_train.worker import set_deterministic


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
        splits = datasets.build(config.data, group.local_rank0_first)
        dataset = getattr(splits, split)
        if dataset is None:
            raise UserError(f"{config.data.name} has no {split} split")
        _check_classes(config, saved.other["data"].get("classes"), splits.classes)
        _check_meaning(config, saved.other["data"], splits.saved)
        task = tasks.build(config.task, splits.classes, vocabulary=splits.vocabulary, token_bytes=splits.token_bytes)
        model = saved_model(config, saved, **splits.offered)
        result = evaluate(config, model.to(group.device), task, group, dataset)
    if Ranks.from_environment().is_first:
        for one in result.broken:
            print(f"! {one.reason}; it is left out", file=sys.stderr)
    row = {"checkpoint": str(found.path), "step": saved.state.step, "split": split, **result.metrics}
    row |= {"broken_samples": len(result.broken)} if result.broken else {}
    confusion = {} if result.confusion is None else {"confusion": result.confusion.tolist()}
    return {**row, "per_class": result.per_class, **confusion}


def _check_classes(config: RunConfig, trained: list[str] | None, found: tuple[str, ...] | None) -> None:
    """Raises UserError if the data has other classes than the training had: class numbers would mean something else."""
    if trained is None or found is None or tuple(trained) == found:
        return
    place = next((k for k, (one, two) in enumerate(zip(trained, found, strict=False)) if one != two), None)
    if place is None:
        which = f"{len(found)} classes, and the model was trained for {len(trained)}"
    else:
        which = f"{printable(found[place])} for class {place}, which was {printable(trained[place])} in training"
    raise UserError(f"this {config.data.name} has {which}: give the data that it was trained for", ExitCode.DATA)


_SAME = {"scaling": "another mean or deviation in its training split", "tokenizer": "other tokens"}


def _check_meaning(config: RunConfig, trained: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises UserError if an input's numbers would mean something else than they did in training."""
    for name, what in _SAME.items():
        if trained.get(name) != found.get(name):
            said = f"this {config.data.name} has {what} than the data of the training had"
            raise UserError(f"{said}: give the data that it was trained for", ExitCode.DATA)


def _text(row: dict[str, object]) -> str:
    """One metric per line."""
    lines = [f"{row['checkpoint']}  {row['split']} split"]
    lines += [f"  {name:<16} {value:.4f}" for name, value in row.items() if isinstance(value, float)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(read_request(EvaluateRequest, sys.argv[1:])))
