"""`dist-train export`: a saved model as a file for other programs, tried before it is kept."""

import io
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dist_train import models, tasks
from dist_train.checkpoint.model_state import same
from dist_train.checkpoint.store import locate
from dist_train.commands.common import reporting
from dist_train.config.problems import printable
from dist_train.config.requests import ExportRequest, read_request
from dist_train.config.schema import Normalize
from dist_train.config.stdout import tell
from dist_train.data import datasets
from dist_train.data.loader import evaluation_samples
from dist_train.errors import ExitCode, UserCodeError, UserError, telling_why
from dist_train.rundir.files import replacing, write_atomic, write_synced
from dist_train.rundir.strict_json import to_json
from dist_train.tasks.base import Task
from dist_train.trained import Trained, assembled, config_of_run, content

SAMPLES = 4
CPU = torch.device("cpu")
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments that the task calls the model with."""


def main(request: ExportRequest) -> int:
    with reporting():
        tell(_export(request))
    return ExitCode.DONE


def _export(request: ExportRequest) -> str:
    """What was written, in a line or as JSON."""
    target = Path(request.target)
    config = config_of_run(target, request.overrides, trusts=request.trust)
    found = locate(target, lambda line: print(line, file=sys.stderr), best=True)
    model, trained = assembled(config, found, content(found), CPU)
    task = tasks.build(config.task, trained.classes, vocabulary=trained.data.get("vocabulary"))
    model.eval()
    path = Path(request.to)
    file = path if path.suffix else path / f"model{'.pt2' if request.format == 'torch' else '.safetensors'}"
    with torch.no_grad():
        call = _call(model, task, trained, request)
        expected = _leaves(model(*call[0], **call[1]))
        write = _program if request.format == "torch" else _tensors
        with telling_why(f"cannot write {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                said = write(model, trained, call, expected, temporary)
                write_atomic(file.with_suffix(".json"), to_json(_facts(trained, request.format, call), indent=1) + "\n")
    size = file.stat().st_size
    if request.as_json:
        facts = {"file": str(file), "bytes": size, "format": request.format, "step": trained.step, "tried": said}
        return to_json(facts)
    return f"{file}  {size / 1e6:.1f} MB, {said}"


def _call(model: nn.Module, task: Task, trained: Trained, request: ExportRequest) -> Call:
    """How the task calls the model, with real inputs: of the user's, else of the evaluation split."""
    config = trained.config
    if request.inputs:
        batches = trained.batches(trained.given(request.inputs), [0])
        batch = next(batches)[1]
    else:
        [batch] = evaluation_samples(config, datasets.build(config.data), task, CPU, SAMPLES, 1)
    calls: list[Call] = []
    hook = model.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    task.predict(model, replace(batch, targets=None))  # type: ignore[arg-type]
    hook.remove()
    if len(batch.indices) > 1:
        return calls[0]
    # torch.export would take a batch of one for a size that never changes.
    return pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.ndim and len(t) == 1 else t, calls[0])


def _tensors(model: nn.Module, trained: Trained, call: Call, expected: list[Tensor], path: Path) -> str:
    """Writes a file that `load_state_dict` takes. Raises UserError when a model that has taken it gives other bits."""
    tensors = {name: t.contiguous().clone() for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    write_synced(path, safetensors.torch.save(tensors, {"format": "pt"}))
    config = trained.config
    new = models.build(config.model, seed=config.seed, starts=False, **trained.offered).eval()
    _try(lambda: new.load_state_dict(safetensors.torch.load_file(path)), "safetensors cannot hold all of")
    if not same(expected, _leaves(new(*call[0], **call[1]))):
        raise _other("the model keeps something outside of its state_dict: --format torch")
    return f"{len(tensors)} tensors; read back, and the same bits on {len(expected[0])} inputs"


def _program(model: nn.Module, trained: Trained, call: Call, expected: list[Tensor], path: Path) -> str:
    """Writes what torch.export makes of the model. Raises UserError when it gives other numbers."""
    rows, shapes = len(expected[0]), torch.export.ShapesCollection()
    for tensor in _leaves(call):
        if tensor.ndim and len(tensor) == rows:
            shapes[tensor] = {0: torch.export.Dim.AUTO}
    written = io.BytesIO()
    logging.disable(logging.WARNING)

    def export() -> None:
        program = torch.export.export(model, *call, dynamic_shapes=shapes.dynamic_shapes(model, *call), strict=False)
        torch.export.save(program, written)

    with redirect_stderr(io.StringIO()):  # where torch tells at length what the error says in a line
        _try(export, "torch.export cannot take")
    write_synced(path, written.getvalue())
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()
    found = _leaves(program(*call[0], **call[1]))
    pairs = list(zip(expected, found, strict=True))
    if not all(torch.allclose(one, two, rtol=1e-4, atol=1e-5, equal_nan=True) for one, two in pairs):
        raise _other("the model may depend on its mode or on what it has seen: --format safetensors")
    largest = max(float((one.double() - two.double()).abs().max()) for one, two in pairs)
    first = pytree.tree_map_only(Tensor, lambda t: t[:1] if t.ndim and len(t) == rows else t, call)
    try:
        program(*first[0], **first[1])
        batch = "batches of any size"
    except Exception:  # of a shape that the program has no place for
        batch = f"batches of {rows} inputs only, for the model's code asks for their number"
    return f"{batch}; read back, and on {rows} inputs the largest difference is {largest:.2g}"


def _try(function: Callable[[], object], said: str) -> None:
    try:
        function()
    except Exception as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise UserCodeError(f"{said} this model: {type(error).__name__}: {reason}") from error


def _other(why: str) -> UserError:
    return UserCodeError(f"the file gives other results than the model, and is not kept; {why}")


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _facts(trained: Trained, kind: str, call: Call) -> Mapping[str, Any]:
    """What one needs besides the file."""
    normalize = next((item for item in trained.config.augment if isinstance(item, Normalize)), None)
    return {
        "format": kind,
        "step": trained.step,
        **trained.data,
        "inputs": [{"dtype": str(t.dtype).removeprefix("torch."), "shape": [*t.shape[1:]]} for t in _leaves(call)],
        "normalize": normalize and {"mean": normalize.mean, "std": normalize.std, "of": "uint8 pixels / 255"},
        "config": trained.config.model_dump(mode="json"),
    }


if __name__ == "__main__":
    sys.exit(main(read_request(ExportRequest, sys.argv[1:])))
