"""`python -m dist_train.commands.evaluate RUN_OR_CHECKPOINT`: the figures of a saved model, on any number of ranks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_train import models, tasks
from dist_train.checkpoint.resume import hand_on
from dist_train.checkpoint.store import locate
from dist_train.commands.common import reporting, run_of
from dist_train.config.errors import UserError
from dist_train.config.stdout import tell
from dist_train.config.strict_json import to_json
from dist_train.data import datasets
from dist_train.process_group import ProcessGroup
from dist_train.ranks import Ranks
from dist_train.worker import figures_of, settle_numerics


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dist-train evaluate", description=__doc__)
    parser.add_argument("target", type=Path, help="a run directory (its best checkpoint) or a checkpoint")
    parser.add_argument("--split", choices=("evaluation", "test", "train"), default="evaluation")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    with reporting():
        row = _evaluate(arguments.target, arguments.split)
    if Ranks.from_environment().is_first:
        tell(to_json(row) if arguments.json else _text(row))
    return 0


def _evaluate(target: Path, split: str) -> dict[str, object]:
    config = run_of(target)
    settle_numerics(config)
    with ProcessGroup(Ranks.from_environment(), config.distributed) as group:
        found = group.from_first(lambda: locate(target, lambda line: print(line, file=sys.stderr), best=True))
        saved = hand_on(found, group)
        assert saved is not None
        splits = datasets.build(config.data, group.first_per_node)
        dataset = getattr(splits, split)
        if dataset is None:
            raise UserError(f"{config.data.name} has no {split} split")
        task = tasks.build(config.task, splits.classes)
        classes = len(splits.classes) if splits.classes else None
        model = models.build(config.model, shape=splits.shape, classes=classes, seed=config.seed)
        saved.snapshot.load_evaluated(model)
        result = figures_of(config, model.to(group.device), task, group, dataset)
    row = {"checkpoint": str(saved.path), "step": saved.state.step, "split": split, **result.metrics}
    confusion = {} if result.confusion is None else {"confusion": result.confusion.tolist()}
    return {**row, "per_class": result.per_class, **confusion}


def _text(row: dict[str, object]) -> str:
    """One figure a line."""
    lines = [f"{row['checkpoint']}  {row['split']} split"]
    lines += [f"  {name:<16} {value:.4f}" for name, value in row.items() if isinstance(value, float)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
