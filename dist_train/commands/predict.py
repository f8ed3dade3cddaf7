"""`dist-train predict`: what a saved model says of a user's own inputs, on any number of ranks."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train import tasks
from dist_train.checkpoint.resume import broadcast_checkpoint
from dist_train.checkpoint.store import locate
from dist_train.commands.answers import Answer, Wording, to_csv, write_mask
from dist_train.commands.common import reporting
from dist_train.config.problems import printable
from dist_train.config.requests import STDIN, PredictRequest, read_request
from dist_train.config.stdout import aligned, tell
from dist_train.data.batch import Microbatch
from dist_train.data.given import Coder, Given, coder_of, read_text
from dist_train.data.loader import number_of_batches
from dist_train.errors import DataError, ExitCode, UserError, telling_why
from dist_train.evaluate import evaluating, own_batches
from dist_train.heartbeat import beat
from dist_train.learner import autocast
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.randomness import Generators, key
from dist_train.rundir.files import remove_tree, sync_folder, write_atomic
from dist_train.rundir.strict_json import to_json
from dist_train.tasks.base import Predictions, Task
from dist_train.tasks.generate import generate
from dist_train.trained import Trained, assembled, config_of_run
from dist_train.worker import set_deterministic


def main(request: PredictRequest) -> int:
    with reporting():
        answers = _predict(request)
    if Ranks.from_environment().is_first:
        _show(request, answers)
    return ExitCode.DONE


def _predict(request: PredictRequest) -> list[Answer]:
    target = Path(request.target)
    config = config_of_run(target, request.overrides, trusts=request.trust)
    set_deterministic(config)
    with ProcessGroup(Ranks.from_environment(), config.distributed) as group:
        found = group.run_on_rank0(lambda: locate(target, lambda line: print(line, file=sys.stderr), best=True))
        model, trained = assembled(config, found, broadcast_checkpoint(found, group), group.device)
        task = tasks.build(config.task, trained.classes, vocabulary=trained.data.get("vocabulary"))
        predictor = Predictor(request=request, group=group, model=model, trained=trained, task=task)
        stdin = _stdin(request)
        if task.generates(model):
            coder = coder_of(config.data, trained.data, group.local_rank0_first)
            answers = predictor.texts([read_text(word, stdin) for word in request.inputs], coder)
            group.run_on_rank0(partial(_write, request, answers))
            return answers
        given = trained.given(request.inputs, stdin, whole=task.whole_pictures)
        with _masks(request, group, given) as folder:
            answers = predictor.samples(given, folder)
            group.run_on_rank0(partial(_write, request, answers))
        return answers


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model that all ranks ask together."""

    request: PredictRequest
    group: ProcessGroup
    model: nn.Module
    trained: Trained
    task: Task

    def texts(self, texts: Sequence[str], coder: Coder) -> list[Answer]:
        """What the model goes on with, each text by one rank."""
        own = own_batches(self.group.ranks, len(texts), "sharded")
        return self._together(((number, number) for number in own), lambda number: self._text(number, texts, coder))

    def _text(self, number: int, texts: Sequence[str], coder: Coder) -> list[Answer]:
        tokens = _encoded(coder, texts[number]).to(self.group.device)
        length, temperature = self.request.length, self.request.temperature
        draws = key(self.request.seed, "text", number)
        with autocast(self.trained.config, self.group.device):
            found = generate(self.model, tokens, length, context=self._context(), temperature=temperature, key=draws)
        text = coder.decode(found[0].tolist())
        return [({"prompt": texts[number], "text": text}, (texts[number] + text,))]

    def _context(self) -> int:
        """The most tokens that the model sees: a window of the training, or what a model of transformers says."""
        own = getattr(self.model, "config", None)
        known = [getattr(own, name, None) for name in ("max_position_embeddings", "n_positions")]
        return next((size for size in (*(self.trained.shape or ())[:1], *known) if size), 1024)

    def samples(self, given: Given, masks: Path | None) -> list[Answer]:
        """What the model says of each sample; masks are written into a folder, where there is one."""
        config, ranks = self.trained.config.eval, self.group.ranks
        own = own_batches(ranks, number_of_batches(len(given.names), config.batch_size), config.mode)
        batches = self.trained.batches(given, own, ranks.local_world_size)
        return self._together(batches, lambda batch: self._batch(batch, given, masks))

    def _batch(self, batch: Microbatch, given: Given, masks: Path | None) -> list[Answer]:
        for one in batch.broken:
            print(f"! {one.reason}; it is left out", file=sys.stderr)
        rows = batch.indices.tolist()
        if not rows:
            return []
        with autocast(self.trained.config, self.group.device):
            found = self.task.predict(self.model, replace(batch, targets=None))  # type: ignore[arg-type]
        if masks is not None:
            _write_masks(found, given, rows, batch.targets, masks)
        answers = self._wording().answers(found)
        return [
            ({given.kind: given.names[row], **answer}, (*cells, _name(given, row)))
            for row, (answer, cells) in zip(rows, answers, strict=True)
        ]

    def _wording(self) -> Wording:
        classes = self.trained.classes
        names = getattr(getattr(self.model, "config", None), "id2label", None)
        if classes is None and isinstance(names, dict):  # of a model of transformers
            classes = tuple(map(str, names.values()))
        columns = (self.trained.data.get("columns") or {}).get("targets", ())
        return Wording(classes=classes, columns=columns, top=self.request.top)

    def _together(self, batches: Iterable[tuple[int, Any]], ask: Callable[[Any], list[Answer]]) -> list[Answer]:
        """The answers of all ranks in the order of the inputs. Where one fails all do, with the first input's error."""
        answers: list[Answer] = []
        failure: UserError | None = None
        beat("evaluate")
        with evaluating(self.model, self.trained.config.seed, Generators(self.model, self.task)) as begin:
            try:
                for number, batch in batches:
                    begin(number)
                    answers += ask(batch)
                    beat("evaluate")
            except UserError as error:
                failure = error
        gathered = self.group.gather_objects((answers, failure))
        if failed := next((error for _, error in gathered if error is not None), None):
            raise failed
        return list(chain.from_iterable(part for part, _ in gathered))


# ---------------------------------------------------------------- what comes in


def _stdin(request: PredictRequest) -> str:
    if STDIN not in request.inputs:
        return ""
    content = sys.stdin.buffer.read() if request.stdin is None else Path(request.stdin).read_bytes()
    return content.decode(errors="surrogateescape")


def _encoded(coder: Coder, text: str) -> Tensor:
    """int64 [1, T]. Raises UserError for a text without tokens."""
    try:
        tokens = torch.tensor([list(map(int, coder.encode(text.encode(errors="surrogateescape"))))])
    except UnicodeDecodeError as error:
        raise DataError(f"the text is no UTF-8 (byte {error.start:,})") from None
    if not tokens.numel():
        raise DataError("the text is empty: give one character at least to go on with")
    return tokens


# ---------------------------------------------------------------- what goes out


def _show(request: PredictRequest, answers: Sequence[Answer]) -> None:
    if request.as_json:
        tell(to_json([row for row, _ in answers]))
    elif request.out is None and answers:
        is_text = "text" in answers[0][0]
        lines = [_plain(cells[0]) for _, cells in answers] if is_text else []
        tell("\n---\n".join(lines) if is_text else aligned([cells for _, cells in answers]))
    if request.out is not None:
        print(f"{len(answers):,} predictions in {request.out}", file=sys.stderr)


def _plain(text: str) -> str:
    """Without what could steer a terminal, or has no UTF-8."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)


def _name(given: Given, row: int) -> str:
    name = given.names[row]
    return printable(name, 4096) if isinstance(name, str) else f"{given.kind} {name:,}"


def _write(request: PredictRequest, answers: Sequence[Answer]) -> None:
    """The rows as a file, if --out names one. Raises UserError."""
    out, rows = Path(request.out or "."), [row for row, _ in answers]
    if out.suffix:
        with telling_why(f"cannot write {out}"):
            write_atomic(out, to_csv(rows) if out.suffix.lower() == ".csv" else to_json(rows) + "\n")


@contextmanager
def _masks(request: PredictRequest, group: ProcessGroup, given: Given) -> Iterator[Path | None]:
    """A folder for masks, if --out names one; it has its name once all of them are in it."""
    out = Path(request.out or "a.json")
    if out.suffix:
        yield None
        return
    names = [_mask_name(given, row) for row in range(len(given.names))]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two pictures would have the mask {twice}: give them one after the other")
    temporary = out.with_name(f".tmp-{out.name}-{group.broadcast_object(os.getpid())}")

    def begin() -> None:
        with telling_why(f"cannot write {out}"):
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise UserError(f"--out {out} is there already: name another folder, or a .csv or .json file")
            temporary.mkdir(parents=True)

    def commit() -> None:
        with telling_why(f"cannot write {out}"):
            sync_folder(temporary)
            os.rename(temporary, out)
            sync_folder(out.parent)

    group.run_on_rank0(begin)
    try:
        yield temporary
        group.run_on_rank0(commit)
    finally:
        if group.ranks.is_first:
            remove_tree(temporary)


def _mask_name(given: Given, row: int) -> Path:
    return given.below[row].with_suffix(".png") if given.below else Path(f"{row + 1}.png")


def _write_masks(found: Predictions, given: Given, rows: Sequence[int], sizes: Tensor, folder: Path) -> None:
    if found.kind != "places" or found.values.ndim != 3:
        raise UserError("--out FOLDER takes masks, and this model gives none: name a .csv or .json file")
    with telling_why(f"cannot write {folder}"):
        for place, row in enumerate(rows):
            size = sizes[place].tolist() if given.below else found.values.shape[1:]
            write_mask(folder / _mask_name(given, row), found.values[place], *size)


if __name__ == "__main__":
    sys.exit(main(read_request(PredictRequest, sys.argv[1:])))
