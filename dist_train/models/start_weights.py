"""Weights to begin with: a file's tensors onto a model's names, and what is to start anew."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dist_train.config.patterns import HEAD, check_patterns, listed, matches
from dist_train.errors import UserError
from dist_train.models.weight_files import read_weights

Note = Callable[[str], None]

_FAMILIES = ("torchvision", "timm", "transformers")
_BESIDE = re.compile(r"(aux\d|aux_classifier|AuxLogits)\.|n_averaged$")
"""Parts that are in a file and take no part here: second outputs of torchvision's models, a counter of torch's
AveragedModel."""
_COUNTER = "num_batches_tracked"
"""Of BatchNorm. Older files have none, and torch begins it at 0."""


@torch.no_grad()
def load_start_weights(
    model: nn.Module, path: Path, what: str, *, reinit: Sequence[str], ours: bool, note: Note
) -> None:
    """Copies parameters and buffers from a file or folder, in the model's dtypes. What starts anew keeps what it has.

    Args:
        what: the file or where it comes from, for messages.
        reinit: patterns of names that start anew, in the model, or are left out, in the file.
        ours: whether the config names the model, and not `package.module:Thing`; its classifier is known then.
        note: is called with one line on what was loaded, what starts anew and what was left over.

    Raises:
        UserError: when the file cannot be read, or its names or shapes are not the model's.
    """
    wanted = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    found = _renamed(read_weights(path), wanted, str(getattr(model, "base_model_prefix", "")))
    check_patterns("model.reinit", reinit, [*wanted, *found])
    has_known_head = not reinit and (ours or type(model).__module__.partition(".")[0] in _FAMILIES)
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()  # of Hugging Face's models

    def may_start_anew(name: str, same_features: bool = True) -> bool:
        return matches(name, reinit) or (has_known_head and same_features and HEAD.match(name) is not None)

    def may_be_left(name: str) -> bool:
        return may_start_anew(name) or bool(_BESIDE.match(name)) or any(re.search(one, name) for one in ignored)

    there = {id(wanted[name]) for name in wanted.keys() & found.keys()}  # tied weights may be there under one name
    missing = {n for n, t in wanted.items() if id(t) not in there and not n.endswith(_COUNTER)}
    misshapen = {n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape}
    over = found.keys() - wanted.keys()
    anew = {n for n in missing if may_start_anew(n)}
    anew |= {n for n in misshapen if may_start_anew(n, wanted[n].shape[1:] == found[n].shape[1:])}
    _check(what, missing - anew, {n for n in over if not may_be_left(n)}, misshapen - anew, wanted, found)
    anew |= {n for n in wanted if matches(n, reinit)}
    loaded = (wanted.keys() & found.keys()) - anew
    for name in loaded:
        wanted[name].copy_(found[name])
    note("; ".join(_told(what, len(loaded), anew, over)))


def _renamed(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], base: str) -> dict[str, Tensor]:
    """The file's tensors under the model's names, where a name of the model is found in one of a file's other forms. A
    name that fits as it is comes first."""
    renamed: dict[str, Tensor] = {name: tensor for name, tensor in found.items() if name in wanted}
    for name, tensor in found.items():
        if name not in wanted:
            fitting = (form for form in _forms(name, base) if form in wanted and form not in renamed)
            renamed[next(fitting, name)] = tensor
    return renamed


def _forms(name: str, base: str) -> Iterator[str]:
    """Without what torch.compile, DDP and Lightning put in front; with and without the name that Hugging Face gives the
    part below the heads, and torchvision's segmentation models their backbone; and torchvision's first DenseNets,
    `norm.1` for norm1."""
    plain = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name.replace("_orig_mod.", ""))
    for form in (plain, bare := plain.removeprefix("module."), bare.removeprefix("model.")):
        yield form
        if base:
            yield f"{base}.{form}"
            yield f"{base}.{form.removeprefix('features.')}"
            yield form.removeprefix(f"{base}.")


def _check(
    what: str,
    missing: set[str],
    over: set[str],
    misshapen: set[str],
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> None:
    shapes = {f"{n} {list(found[n].shape)}, the model's is {list(wanted[n].shape)}" for n in misshapen}
    each = {"missing": missing, "not in the model": over, "of another shape": shapes}
    if problems := "; ".join(f"{kind}: {listed(names)}" for kind, names in each.items() if names):
        first = min(misshapen or missing or over)
        raise UserError(
            f"model.start_weights: {what} does not fit the model; {problems}. Name in model.reinit what is to start "
            f"anew or to be left out, such as [{first.rpartition('.')[0] or first}.*]"
        )


def _told(what: str, loaded: int, anew: set[str], over: set[str]) -> Iterator[str]:
    yield f"weights of {what}: {loaded} tensors loaded"
    if anew:
        yield f"begun anew: {listed(anew)}"
    if over:
        yield f"left over: {listed(over)}"
