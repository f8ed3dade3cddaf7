"""Weights to begin with: the forms of files, names that others leave, what starts anew, and what is refused."""

import json
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer, get_model

from dist_train import models
from dist_train.config.schema import Cnn, CustomModel, Mlp, TorchvisionModel
from dist_train.errors import ExitCode, UserError

SHAPE = (3, 32, 32)


def build(config, classes=2):
    """The model and what it said."""
    told = []
    return models.build(config, shape=SHAPE, classes=classes, seed=0, note=told.append), told


def trained(classes=2, width=4):
    """A state_dict with weights that no model begins with."""
    state = models.build(Cnn(width=width), shape=SHAPE, classes=classes, seed=7).state_dict()
    return {name: tensor.contiguous() for name, tensor in state.items()}  # as safetensors wants them


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_loaded(model, state, but=()):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) == (name not in but), name


# ---------------------------------------------------------------- the forms


def legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def sharded(state, folder, ending, index, save):
    folder.mkdir()
    names = sorted(state)
    parts = {f"part-{half}.{ending}": names[half::2] for half in (0, 1)}
    for file, held in parts.items():
        save({name: state[name].clone() for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def of_a_run(state, folder):
    folder.mkdir()
    save_file({name: torch.zeros_like(tensor) for name, tensor in state.items()}, folder / "model.safetensors")
    save_file({**state, "n_averaged": torch.tensor(3)}, folder / "ema.safetensors")


def in_a_folder(state, folder):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")


FORMS = {
    "safetensors": save_file,
    "torch": torch.save,
    "torch before 1.6": legacy,
    "Lightning": lambda state, path: torch.save({"epoch": 3, "state_dict": prefixed("model.", state)}, path),
    "timm": lambda state, path: torch.save({"arch": "cnn", "model": state, "optimizer": {"state": {}}}, path),
    "another": lambda state, path: torch.save({"model_state": state}, path),
    "DDP": lambda state, path: save_file(prefixed("module.", state), path),
    "DDP of a compiled one": lambda state, path: torch.save(prefixed("module._orig_mod.", state), path),
    "AveragedModel": lambda state, path: torch.save(
        {"n_averaged": torch.tensor(2), **prefixed("module.", state)}, path
    ),
    "no counters": lambda state, path: torch.save({n: t for n, t in state.items() if "tracked" not in n}, path),
    "parameters": lambda state, path: torch.save({n: nn.Parameter(t, False) for n, t in state.items()}, path),
    "Hugging Face": in_a_folder,
    "sharded": lambda state, path: sharded(state, path, "safetensors", "model.safetensors.index.json", save_file),
    "sharded .bin": lambda state, path: sharded(state, path, "bin", "pytorch_model.bin.index.json", torch.save),
    "a checkpoint of ours": of_a_run,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_is_read(form, tmp_path):
    state = trained()
    path = tmp_path / "weights.any"  # the content counts
    FORMS[form](state, path)
    model, told = build(Cnn(width=4, start_weights=str(path)))
    assert_loaded(model, state)
    over = "; left over: n_averaged" * (form in ("AveragedModel", "a checkpoint of ours"))
    count = sum(form != "no counters" or "tracked" not in name for name in state)
    assert told == [f"weights of {path}: {count} tensors loaded{over}"]


def test_a_name_that_fits_as_it_is_comes_before_one_with_a_prefix(tmp_path):
    state, path = trained(), tmp_path / "w.pth"
    torch.save({**prefixed("module.", trained(width=4, classes=2)), **state}, path)
    with pytest.raises(UserError, match=r"not in the model: module\.block1\.0\.weight, "):
        build(Cnn(width=4, start_weights=str(path)))


# ---------------------------------------------------------------- refused, in one line


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace):
        self._trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self._trace),))


def half(path):
    torch.save(trained(), path)
    os.truncate(path, path.stat().st_size // 2)


def scripted(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def with_index(content):
    def make(path):
        path.mkdir()
        (path / "model.safetensors.index.json").write_text(content)

    return make


BROKEN = {
    "nothing": (lambda path: None, "No such file or directory"),
    "empty": (lambda path: path.write_bytes(b""), "neither a safetensors file nor one of torch.save"),
    "text": (lambda path: path.write_bytes(b"not weights at all"), "neither a safetensors file nor"),
    "cut": (half, "cannot be read"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "git lfs pull",
    ),
    "code": (
        lambda path: torch.save({"state_dict": trained(), "args": Trap(path.with_name("trace"))}, path),
        "run code",
    ),
    "a whole model": (lambda path: torch.save(nn.Linear(2, 2), path), "it holds torch.nn.modules.linear.Linear, and"),
    "TorchScript": (scripted, "TorchScript archive"),
    "no names": (lambda path: torch.save([torch.zeros(2)], path), "no weights by name but a list"),
    "no tensors": (lambda path: torch.save({"epoch": 3, "best": 0.5}, path), "no weights by name but best, epoch"),
    "an empty folder": (Path.mkdir, "the folder has none of"),
    "no index": (with_index("[]"), "it is no index of weights beside it"),
    "an index that leads out": (with_index('{"weight_map": {"a": "../w"}}'), "it is no index of weights beside it"),
    "a part that is missing": (with_index('{"weight_map": {"a": "p1"}}'), "p1 cannot be read: No such file"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # which people have files of, all the same
@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_told_in_one_line_and_never_run(what, tmp_path):
    make, reason = BROKEN[what]
    make(tmp_path / "w")
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        build(Mlp(start_weights=str(tmp_path / "w")))
    assert "\n" not in str(caught.value) and "model.start_weights: " in str(caught.value)
    assert caught.value.code == ExitCode.CONFIG and not (tmp_path / "trace").exists()


def test_an_index_that_names_what_its_files_lack(tmp_path):
    sharded(trained(), tmp_path / "w", "bin", "pytorch_model.bin.index.json", torch.save)
    shutil.copy(tmp_path / "w/part-0.bin", tmp_path / "w/part-1.bin")
    with pytest.raises(UserError, match=r"tensors that its files do not hold: .* and \d+ more"):
        build(Cnn(width=4, start_weights=str(tmp_path / "w")))


# ---------------------------------------------------------------- what starts anew


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "pth"])
def test_weights_of_imagenet_begin_a_training_of_two_classes(save, tmp_path):
    """What the first one who fine-tunes does."""
    state, path = get_model("resnet18", weights=None).state_dict(), tmp_path / "rn18"
    save(state, path)
    fresh, _ = build(TorchvisionModel(name="resnet18"))
    model, told = build(TorchvisionModel(name="resnet18", start_weights=str(path)))
    assert told == [f"weights of {path}: 120 tensors loaded; begun anew: fc.bias, fc.weight"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name] if name.startswith("fc.") else state[name])


FAMILIES = {  # a family: (a small model of it, what begins anew)
    "mobilenet_v3_small": "classifier.3.bias, classifier.3.weight",
    "squeezenet1_1": "classifier.1.bias, classifier.1.weight",
    "shufflenet_v2_x0_5": "fc.bias, fc.weight",
    "densenet121": "classifier.bias, classifier.weight",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_classifiers_of_torchvision_are_known(name, tmp_path):
    with torch.device("meta"):
        shapes = get_model(name).state_dict()
    state = {n: torch.zeros(t.shape, dtype=t.dtype) for n, t in shapes.items()}
    if name == "densenet121":  # as the file that torchvision serves
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", n): t for n, t in state.items()}
    torch.save(state, tmp_path / "w")
    _, told = build(TorchvisionModel(name=name, start_weights=str(tmp_path / "w")))
    assert told[0].endswith(f"; begun anew: {FAMILIES[name]}")


def test_the_classifier_of_a_class_of_a_known_library_is_known(tmp_path):
    size = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8}
    torch.save(VisionTransformer(**size, num_classes=9).state_dict(), tmp_path / "w")
    vit = CustomModel(name="torchvision.models:VisionTransformer", args={**size, "num_classes": 2})
    _, told = build(vit.model_copy(update={"start_weights": str(tmp_path / "w")}))
    assert told[0].endswith("; begun anew: heads.head.bias, heads.head.weight")


def test_a_classifier_that_is_missing_and_second_outputs_that_are_left_over(tmp_path):
    state = {n: t for n, t in get_model("resnet18", weights=None).state_dict().items() if not n.startswith("fc.")}
    torch.save({**state, "aux1.fc1.weight": torch.zeros(3)}, tmp_path / "w")
    _, told = build(TorchvisionModel(name="resnet18", start_weights=str(tmp_path / "w")))
    assert told[0].endswith("120 tensors loaded; begun anew: fc.bias, fc.weight; left over: aux1.fc1.weight")


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        ("lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "classifier.low_classifier.weight"),
        (
            "fcn_resnet50",
            "fcn_resnet50",
            "aux_classifier.4.bias, aux_classifier.4.weight, classifier.4.bias, classifier.4.weight",
        ),
        ("resnet50", "deeplabv3_resnet50", "more; left over: fc.bias, fc.weight"),
        (
            "mobilenet_v3_large",
            "deeplabv3_mobilenet_v3_large",
            "and 39 more; left over: classifier.0.bias, classifier.0.weight, classifier.3.bias, classifier.3.weight",
        ),
    ],
)
def test_a_segmentation_model_begins_with_its_own_weights_or_a_classifiers(tmp_path, file, name, said):
    """Trained for other classes; all of the backbone is loaded."""
    state = models.build(TorchvisionModel(name=file), shape=(3, 32, 32), classes=9, seed=7).state_dict()
    torch.save(state, tmp_path / "w")
    model, told = build(TorchvisionModel(name=name, start_weights=str(tmp_path / "w")), classes=4)
    assert told[0].endswith(said), told
    below = {n.removeprefix("backbone.").removeprefix("features."): t for n, t in state.items()}
    assert all(torch.equal(t, below[n]) for n, t in model.backbone.state_dict().items())


class Own(nn.Sequential):
    """A user's, whose output nobody knows by its name; `tied` has one weight twice."""

    def __init__(self, classes: int, tied: bool = False) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, classes)
        if tied:
            self.again = nn.Linear(4, 4)
            self.again.weight = self.body.weight


def own(path, classes=2, tied=False, **more):
    name = f"{__name__}:Own"
    return build(CustomModel(name=name, args={"tied": tied}, start_weights=str(path), **more), classes)


def test_a_users_model_starts_anew_only_what_reinit_says(tmp_path):
    torch.save(Own(9).state_dict(), tmp_path / "w")
    with pytest.raises(UserError) as caught:
        own(tmp_path / "w")
    assert str(caught.value).endswith(
        "fc.bias [9], the model's is [2], fc.weight [9, 4], the model's is [2, 4]. Name in model.reinit what is to "
        "start anew or to be left out, such as [fc.*]"
    )
    assert own(tmp_path / "w", reinit=["fc.*"])[1][0].endswith("2 tensors loaded; begun anew: fc.bias, fc.weight")


def test_reinit_starts_anew_what_would_fit_and_leaves_out_what_the_file_alone_has(tmp_path):
    torch.save({**Own(2).state_dict(), "old.weight": torch.zeros(1)}, tmp_path / "w")
    model, told = own(tmp_path / "w", reinit=["body.*", "old.*"])
    assert told[0].endswith("2 tensors loaded; begun anew: body.bias, body.weight; left over: old.weight")
    assert not torch.equal(model.body.weight, torch.load(tmp_path / "w", weights_only=True)["body.weight"])
    with pytest.raises(UserError, match=r"not in the model: old\.weight.* such as \[old\.\*\]"):
        own(tmp_path / "w")


@pytest.mark.parametrize(
    ("pattern", "hint"), [("fcc.*", "there is fc.*"), ("fc", r"all that is in it is fc\.\*"), ("", "there is ")]
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, hint, tmp_path):
    torch.save(Own(2).state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match=f"model.reinit: no name matches '{re.escape(pattern)}'; {hint}"):
        own(tmp_path / "w", reinit=[pattern])


def test_a_tied_weight_may_be_there_under_one_name(tmp_path):
    state = {n: t for n, t in Own(2, tied=True).state_dict().items() if n != "again.weight"}
    torch.save(state, tmp_path / "w")
    model, _ = own(tmp_path / "w", tied=True)
    assert torch.equal(model.again.weight, state["body.weight"])


def test_the_backbone_of_another_size_is_no_matter_of_the_classifier(tmp_path):
    torch.save(get_model("resnet50", weights=None).state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match=r"does not fit the model; not in the model: .*; of another shape: fc\.weight "):
        build(TorchvisionModel(name="resnet18", start_weights=str(tmp_path / "w")))


# ---------------------------------------------------------------- pretrained


def test_pretrained_weights_come_from_torch_hubs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = get_model("resnet18", weights=None).state_dict()
    torch.save(state, folder / "resnet18-f37072fd.pth")
    config = TorchvisionModel(name="resnet18", pretrained=True)
    assert models.can_start(config)
    model, told = build(config, classes=1000)
    assert_loaded(model, state)
    assert told == ["weights of ResNet18_Weights.IMAGENET1K_V1: 122 tensors loaded"]


def test_pretrained_weights_that_cannot_be_had_name_the_file_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    config = TorchvisionModel(name="resnet18", pretrained=True)
    assert not models.can_start(config)
    with pytest.raises(UserError) as caught:
        models.fetch(config, nullcontext)
    place, said = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth", str(caught.value)
    assert f"{place} is not there and could not be downloaded (" in said and "\n" not in said
    assert "fetch https://download.pytorch.org/models/resnet18-f37072fd.pth elsewhere and put it there" in said
    assert caught.value.code == ExitCode.DATA and list(place.parent.iterdir()) == []
