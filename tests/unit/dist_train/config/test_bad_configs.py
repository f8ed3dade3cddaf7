"""Every mistake in a config is told in one clear line with its place, before anything else happens."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_train.config.problems import ConfigError
from dist_train.config.source import load

GOOD = "data: {name: digits}\nmodel: {name: cnn}\n"


@dataclass(frozen=True)
class Bad:
    """A config with one mistake, and what must be said about it."""

    text: str | bytes
    """What follows GOOD; bytes are the whole file."""
    where: str
    """`line:column`, or `command line`, or nothing for the file as a whole."""
    key: str
    fragment: str
    overrides: tuple[str, ...] = ()
    whole: bool = False
    """Whether `text` is the whole file."""


def whole(text: str | bytes, where: str, key: str, fragment: str) -> Bad:
    return Bad(text, where, key, fragment, whole=True)


def line(where: str, key: str, fragment: str, *overrides: str) -> Bad:
    return Bad("", where, key, fragment, overrides)


COMMAND = "command line"
BAD = {
    # ---- wrong types
    "text for a number": Bad("seed: abc", "3:7", "seed", "must be a whole number of 0 or more, not 'abc'"),
    "quoted number": Bad('optimizer: {lr: "0.1"}', "3:17", "optimizer.lr", "without quotes"),
    "number with separators": Bad("data: {name: synthetic, size: 1_000}", "3:31", "data.size", "without quotes"),
    "fraction for a whole number": Bad("batch: {global_size: 64.5}", "3:22", "batch.global_size", "a whole number"),
    "bool as text": Bad("exact: 'true'", "3:8", "exact", "true or false, not 'true' (without quotes)"),
    "off is text": Bad("exact: off", "3:8", "exact", "are text in YAML 1.2"),
    "one for true": Bad("exact: 1", "3:8", "exact", "true or false, not 1"),
    "true for a number": Bad("seed: true", "3:7", "seed", "whole number of 0 or more, not true"),
    "number for text": Bad("name: 2024", "3:7", "name", "(put it in quotes)"),
    "null for a section": Bad("train:", "3:7", "train", "must be a section of keys, not null"),
    "null to switch a section off": Bad(
        "tracking: {wandb: null}", "3:19", "tracking.wandb", "not null (to switch it off: {mode: disabled})"
    ),
    "false to switch a section off": Bad(
        "tracking: {texts: false}", "3:19", "tracking.texts", "not false (to switch it off: {count: 0})"
    ),
    "false where it is null": Bad("train: {clip_norm: false}", "3:20", "train.clip_norm", "(to switch it off: null)"),
    "zero where it is null": Bad("train: {ema_decay: 0}", "3:20", "train.ema_decay", "not 0 (to switch it off: null)"),
    "null for a component": Bad("schedule: null", "3:11", "schedule", "(to switch it off: {name: constant})"),
    "null for the default": Bad("eval: null", "3:7", "eval", "not null (for the default, leave it out)"),
    "a key of a task without keys": Bad(
        "task: {name: huggingface, loss: x}", "3:27", "task.loss", "segmentation (this task has no keys)"
    ),
    "number for a section": Bad("batch: 64", "3:8", "batch", "a section of keys, not 64"),
    "list for a section": Bad("batch: [64]", "3:8", "batch", "a section of keys, not [64]"),
    "text for a list": Bad("tracking: {wandb: {tags: x}}", "3:26", "tracking.wandb.tags", "a list of texts, not 'x'"),
    "section for a list": Bad("augment: {name: normalize}", "3:1", "augment", "must be a list"),
    "text in a list": Bad("model: {name: mlp, hidden: [8, x]}", "3:32", "model.hidden.1", "not 'x'"),
    "list too short": Bad("data: {name: synthetic, shape: [3, 8]}", "3:32", "data.shape", "a list of 3"),
    "component as text": Bad("task: classification", "3:7", "task", "such as {name: classification}"),
    "component as list": Bad("task: [classification]", "3:7", "task", "a section with a name"),
    "item as text": Bad("augment: [horizontal_flip]", "3:11", "augment.0", "such as {name: horizontal_flip}"),
    # ---- out of range
    "negative": Bad("seed: -1", "3:7", "seed", "0 or more, not -1"),
    "zero": Bad("optimizer: {lr: 0}", "3:17", "optimizer.lr", "a number above 0, not 0"),
    "nan": Bad("optimizer: {lr: .nan}", "3:17", "optimizer.lr", "a number above 0, not nan"),
    "infinite": Bad("optimizer: {lr: 1e999}", "3:17", "optimizer.lr", "a number above 0, not inf"),
    "huge whole number": Bad("seed: 99999999999999999999", "3:7", "seed", "below 2^63"),
    "endless number": Bad(f"seed: {'9' * 5000}", "3:7", "seed", "a number of 5,000 characters"),
    "share above one": Bad("schedule: {final: 1.5}", "3:19", "schedule.final", "from 0 to 1, not 1.5"),
    "keep one": Bad("checkpoint: {keep: 1}", "3:20", "checkpoint.keep", "of 2 or more, not 1"),
    "no unit": Bad("train: {duration: 10}", "3:19", "train.duration", "a number and a unit, such as 2 epochs"),
    "unknown unit": Bad("train: {duration: 10 days}", "3:19", "train.duration", "not '10 days'"),
    "time for a schedule": Bad("train: {duration: 1 h}", "3:19", "train.duration", "steps, epochs or samples"),
    "steps for a time": Bad("distributed: {timeout: 3 steps}", "3:24", "distributed.timeout", "s, min or h"),
    "zero duration": Bad("eval: {every: 0 epochs}", "3:15", "eval.every", "greater than zero"),
    "name leaves the root": Bad("name: ../../x", "3:7", "name", "letters, digits"),
    "name is a flag": Bad("name: -rf", "3:7", "name", "not '-rf'"),
    # ---- wrong choices
    "precision": Bad(
        "train: {precision: fp23}", "3:20", "train.precision", "fp32, bf16 or fp16, not 'fp23'. Did you mean"
    ),
    "one of two kinds": Bad("loader: {workers: autp}", "3:19", "loader.workers", "0 or more, or auto, not 'autp'. Did"),
    "unknown model": Bad("model: {name: resnet19}", "3:15", "model.name", "Did you mean resnet18?"),
    "unknown data": Bad(
        "data: {name: digts}", "3:14", "data.name", "unknown data 'digts'. Did you mean digits? (digits, "
    ),
    "unknown schedule": Bad("schedule: {name: cosin}", "3:18", "schedule.name", "Did you mean cosine?"),
    "name is a number": Bad("optimizer: {name: 3}", "3:19", "optimizer.name", "unknown optimizer 3"),
    "dots for a colon": Bad("model: {name: os.system}", "3:15", "model.name", "your own package.module:Thing"),
    "broken import path": Bad("model: {name: 'a b:C'}", "3:15", "model.name", "must be package.module:Thing"),
    "unknown item": Bad("augment: [{name: flip}]", "3:18", "augment.0.name", "unknown augmentation 'flip'"),
    "depth": Bad("model: {name: resnet_cifar, depth: 18}", "3:36", "model.depth", "6n + 2, such as 20, 32"),
    "reinit of nothing": Bad(
        "model: {name: cnn, reinit: [a]}", "3:1", "model", "reinit is for what start_weights would"
    ),
    "two beginnings": Bad(
        "model: {name: resnet18, pretrained: true, start_weights: w}", "3:1", "model", "are two beginnings: give one"
    ),
    "a group of nothing": Bad(
        "optimizer: {groups: [{match: [a]}]}",
        "3:22",
        "optimizer.groups.0",
        "gives its parameters an lr, a weight_decay",
    ),
    "a group without names": Bad(
        "optimizer: {groups: [{match: [], lr: 1.0}]}", "3:30", "optimizer.groups.0.match", "a list of 1 or more"
    ),
    "a group's typo": Bad(
        "optimizer: {groups: [{match: [a], lrr: 1.0}]}", "3:35", "optimizer.groups.0.lrr", "Did you mean lr?"
    ),
    # ---- unknown and missing keys
    "typo": Bad(
        "optimizer:\n  lrr: 1", "4:3", "optimizer.lrr", "unknown key for optimizer sgd. Did you mean lr? (groups, "
    ),
    "top-level typo": Bad("sead: 1", "3:1", "sead", "unknown key. Did you mean seed?"),
    "of another component": Bad("optimizer: {betas: [0, 0]}", "3:13", "optimizer.betas", "it belongs to adamw"),
    "of another section": Bad("clip_norm: 1", "3:1", "clip_norm", "here that is train.clip_norm"),
    "other trainers' word": Bad("batch_size: 64", "3:1", "batch_size", "here that is batch.global_size"),
    "too deep": Bad("tracking: {wandb: {projct: x}}", "3:20", "tracking.wandb.projct", "Did you mean project?"),
    "item's key": Bad(
        "augment:\n- name: mixup\n  alfa: 1", "5:3", "augment.0.alfa", "augment.0 mixup. Did you mean alpha?"
    ),
    "no data": whole("model: {name: cnn}", "1:1", "data", "is missing: a section with a name, digits, "),
    "no name": Bad("model: {width: 3}", "3:1", "model.name", "is missing: mlp, cnn, "),
    "no root": Bad("data: {name: image_folder, eval: x, train: y}", "3:1", "data.root", "is missing: text"),
    "no mean": Bad("augment: [{name: normalize, std: [1]}]", "3:11", "augment.0.mean", "is missing: a list"),
    "no patience": Bad(
        "train: {early_stopping: {}}", "3:9", "train.early_stopping.patience", "is missing: a whole number"
    ),
    # ---- contradictions
    "a metric that is not reported": Bad(
        "eval: {best: acuracy}", "3:14", "eval.best", "not 'acuracy'. Did you mean accuracy?"
    ),
    "batch does not divide": Bad(
        "batch: {global_size: 100, microbatches: 8}", "3:22", "batch.global_size", "96 and 104"
    ),
    "batch too small": Bad(
        "batch: {global_size: 4, microbatches: 8}", "3:22", "batch.global_size", "the smallest is 8"
    ),
    "exact and SyncBatchNorm": Bad(
        "model: {name: cnn, sync_batchnorm: true}", "3:36", "model.sync_batchnorm", "set exact: false"
    ),
    "pixels for images": Bad(
        "model: {name: fcn_resnet50}",
        "3:15",
        "model.name",
        "each pixel; task classification needs a model such as resnet",
    ),
    "images for pixels": Bad(
        "model: {name: resnet18}\ntask: {name: segmentation}",
        "3:15",
        "model.name",
        "needs a model such as fcn_resnet50",
    ),
    "twice the same": Bad("augment: [{name: mixup}, {name: mixup}]", "3:26", "augment.1", "mixup is there twice"),
    "wrong order": Bad(
        "augment: [{name: mixup}, {name: normalize, mean: [0], std: [1]}]",
        "3:26",
        "augment.1",
        "must come before mixup",
    ),
    "mean and std": Bad("augment: [{name: normalize, mean: [0], std: [1, 1]}]", "3:11", "augment.0", "std 2"),
    "two ways to split": Bad("data: {name: image_folder, root: x}", "3:1", "data", "either eval, a folder"),
    "nesterov": Bad("optimizer: {momentum: 0, nesterov: true}", "3:1", "optimizer", "nesterov needs a momentum"),
    # ---- not YAML, or more than a config
    "duplicate key": Bad("seed: 1\nseed: 2", "4:1", "seed", "given twice, first in line 3"),
    "duplicate section": Bad("model: {name: mlp}\nmodel: {name: mlp}", "4:1", "model", "given twice"),
    "tab": Bad("train:\n\tduration: 1 epoch", "4:1", "", "a tab; YAML indents with spaces"),
    "empty": whole("", "1:1", "", "the file is empty"),
    "only comments": whole("# nothing\n", "1:1", "", "the file is empty"),
    "a list": whole("- data\n- model\n", "1:1", "", "and this is a list"),
    "a text": whole("digits", "1:1", "", "the single value 'digits'"),
    "two documents": Bad("---\nseed: 1", "3:1", "", "a second document begins here"),
    "second colon": Bad("name: a: b", "3:8", "", "a second ': '"),
    "open bracket": Bad("augment: [", "4:1", "", "a bracket is not closed"),
    "no colon": Bad("seed 3", "4:1", "", "a line without a colon"),
    "unknown alias": Bad("name: *nope", "3:7", "", "an alias (*)"),
    "python object": Bad(
        "name: !!python/object/apply:os.system ['touch canary']", "3:7", "name", "tags such as !!python/object/apply"
    ),
    "python name": Bad("name: !!python/name:os.system", "3:7", "name", "tags such as !!python/name"),
    "own tag": Bad("seed: !include x.yaml", "3:7", "seed", "tags such as !include"),
    "tag that lies": Bad("seed: !!int abc", "3:7", "seed", "'abc' is no int"),
    "not UTF-8": whole(GOOD.encode() + b"name: caf\xe9\n", "3:10", "", "byte 0xe9 is not UTF-8"),
    "UTF-16": whole(GOOD.encode("utf-16"), "1:1", "", "UTF-16; save it as UTF-8"),
    "zero byte": whole(GOOD.encode() + b"name: \x00", "3:7", "", "a character that YAML does not allow: 0x0"),
    "bad escape": Bad('name: "\\UFFFFFFFF"', "1:1", "", "an escape that stands for no character"),
    "control character": Bad('run_root: "a\\eb"', "3:11", "run_root", "a control character"),
    "lone surrogate": Bad('run_root: "\\uD800"', "3:11", "run_root", "a control character"),
    "key is a number": Bad("1: x", "3:1", "1", "a key is text"),
    "key is a list": Bad("[a, b]: x", "3:1", "", "a key is text, not a list"),
    "deep nesting": Bad("augment: " + "[" * 5000, "3:41", "", "nested more than 32 levels"),
    "alias of itself": Bad("augment: &a [*a]", "3:10", "augment", "aliases (*) that expand"),
    "merge of text": Bad("<<: text", "3:5", "<<", "needs a mapping"),
    "too large": whole(b"#" * 300_000, "", "", "larger than 256 KiB"),
    "too many values": Bad(f"augment: [{'1,' * 20_000}]", "", "", "more than 5,000 values"),
    # ---- extends
    "missing parent": whole("extends: bas.yaml", "1:10", "extends", "no such file: bas.yaml. Did you mean base.yaml?"),
    "circle": whole("extends: x.yaml", "1:10", "extends", "in a circle: x.yaml → x.yaml"),
    "parent is a folder": whole("extends: .", "1:10", "extends", "is a folder"),
    "parent is a number": whole("extends: [3]", "1:11", "extends", "a file name or a list of file names, not 3"),
    "extends below": Bad("train: {extends: base.yaml}", "3:9", "train.extends", "unknown key for train"),
    # ---- the command line
    "override typo": line(
        COMMAND, "optimizer.lrr", "unknown key for optimizer sgd. Did you mean lr?", "optimizer.lrr=1"
    ),
    "override of the batch": line(
        COMMAND, "batch.global_size", "96 and 104", "batch.global_size=100", "batch.microbatches=8"
    ),
    "no equals sign": line(COMMAND, "", "'seed' is no override; one is written key=value", "seed"),
    "empty key": line(COMMAND, "", "'=3' is no override", "=3"),
    "empty part": line(COMMAND, "", "'train..duration=3' is no override", "train..duration=3"),
    "endless key": line(COMMAND, "", "is no override", "a." * 5000 + "a=1"),
    "open bracket in an override": line(COMMAND, "augment", "a bracket is not closed", "augment=["),
    "tag in an override": line(COMMAND, "name", "tags such as", "name=!!python/name:os.system"),
    "below a value": line(COMMAND, "seed.x", "seed is the value 3, with no keys below it", "seed=3", "seed.x=1"),
    "no such item": line(
        COMMAND, "augment.0.p", "augment is an empty list; there is no 0", "augment=[]", "augment.0.p=1"
    ),
    "item by name": line(COMMAND, "augment.p.p", "there is no p", "augment=[{name: mixup}]", "augment.p.p=1"),
    "unknown component": line(COMMAND, "model.name", "Did you mean mlp?", "model=mpl"),
    "key of the old component": line(
        COMMAND, "model.width", "it belongs to cnn, resnet_cifar", "model=mlp", "model.width=3"
    ),
    "extends on the command line": line(COMMAND, "extends", "unknown key", "extends=base.yaml"),
    "surrogate": line(COMMAND, "name", "a character that YAML does not allow", "name=\udcff"),
}


def _replace_duplicates(text: str) -> str:
    """GOOD with `text` after it; a data or model section in `text` takes the place of GOOD's, on a line left empty."""
    head = [line for line in GOOD.splitlines() if line.split(":")[0] not in _sections(text)]
    return "\n".join([*[""] * (2 - len(head)), *head, text]) + "\n"


def _sections(text: str) -> set[str]:
    return {line.split(":")[0] for line in text.splitlines()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_one_mistake_gives_one_clear_line(bad: Bad, folder: Path) -> None:
    text = bad.text if bad.whole or isinstance(bad.text, bytes) else _replace_duplicates(bad.text)
    (folder / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = sorted(os.listdir(folder))
    begin = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load("x.yaml", bad.overrides)
    assert time.process_time() - begin < 1.0
    problem = caught.value.problems[0]
    assert bad.fragment in problem.message
    assert problem.key == bad.key
    if bad.where:
        assert problem.where == (bad.where if bad.where == COMMAND else f"x.yaml:{bad.where}")
    assert len(caught.value.problems) == 1, str(caught.value)
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    assert sorted(os.listdir(folder)) == before, "nothing is created, nothing executed"


def test_a_missing_file_names_its_neighbour(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file: bse.yaml. Did you mean base.yaml\?"):
        load("bse.yaml")
    with pytest.raises(ConfigError, match="nor a folder nowhere"):
        load("nowhere/base.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load(folder)
    with pytest.raises(ConfigError, match="cannot read"):
        load("a\0b")
    with pytest.raises(ConfigError, match="no regular file"):
        load("/dev/zero")


def test_all_problems_come_at_once_in_order_of_place_and_aligned(folder: Path) -> None:
    (folder / "parent.yaml").write_text("data: {name: digits}\ntrain:\n  precision: fp8\n")
    (folder / "x.yaml").write_text("extends: parent.yaml\nmodel: {name: cnn, widht: 3}\nseed: x\nseed: 3\n")
    with pytest.raises(ConfigError) as caught:
        load("x.yaml", ["optimizer.lrr=0.1", "batch.microbatches=0", "nonsense"])
    assert [(problem.where, problem.key) for problem in caught.value.problems] == [
        ("x.yaml:2:20", "model.widht"),
        ("x.yaml:4:1", "seed"),
        ("parent.yaml:3:14", "train.precision"),
        (COMMAND, "optimizer.lrr"),
        (COMMAND, "batch.microbatches"),
        (COMMAND, ""),
    ]
    lines = str(caught.value).splitlines()
    assert lines[0] == "x.yaml: 6 problems"
    first, second = lines[1].index("model.widht"), lines[1].index("unknown key")
    for text, problem in zip(lines[1:], caught.value.problems, strict=True):
        assert text.startswith(f"  {problem.where}")
        assert text[first:].startswith(problem.key) and text[second:] == problem.message


def test_the_text_is_that_of_the_manual(folder: Path) -> None:
    (folder / "x.yaml").write_text(GOOD + "batch: {microbatches: 8}\n")
    with pytest.raises(ConfigError) as caught:
        load("x.yaml", ["optimizer.lrr=0.1", "batch.global_size=100"])
    assert str(caught.value) == (
        "x.yaml: 2 problems\n"
        "  command line  optimizer.lrr      unknown key for optimizer sgd. Did you mean lr?"
        " (groups, layer_decay, lr, momentum, nesterov, weight_decay)\n"
        "  command line  batch.global_size  100 does not divide into 8 microbatches; the nearest are 96 and 104"
    )


def test_a_thousand_problems_are_cut_short(folder: Path) -> None:
    (folder / "x.yaml").write_text(GOOD + "\n".join(f"unknown{i}: 1" for i in range(1000)))
    with pytest.raises(ConfigError) as caught:
        load("x.yaml")
    assert len(caught.value.problems) == 1000
    assert str(caught.value).splitlines()[-1] == "  … and 960 more"


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)
HOSTILE = {
    "billion laughs": BOMB,
    "merge bomb": "\n".join(
        ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    ),
    "open maps": "{" * 100_000,
    "block nesting": "".join(" " * i + "a:\n" for i in range(600)),
    "long key": "a" * 200_000 + ": 1",
    "many question marks": "? " * 100_000,
    "many dashes": "- " * 100_000,
    "many anchors": "&a " * 50_000,
    "digits": "seed: 0x" + "f" * 200_000,
    "exponent": "seed: 1e" + "9" * 90,
    "quotes": '"' * 100_001,
    "tag directives": "%TAG ! tag:yaml.org,2002:python/\n---\nname: !name:os.system\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_quickly_and_in_little_memory(text: str, folder: Path) -> None:
    (folder / "x.yaml").write_text(text)
    script = (
        "import re, sys, time\n"
        "from dist_train.config.source import load\n"
        "from dist_train.config.problems import ConfigError\n"
        "begin = time.process_time()\n"
        "try:\n    load('x.yaml')\nexcept ConfigError:\n    pass\nelse:\n    sys.exit('accepted')\n"
        "assert time.process_time() - begin < 1.0, time.process_time() - begin\n"
        "peak = int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "assert peak < 200 * 1024, f'{peak} KiB'\n"
    )
    root = Path(__file__).parents[4]
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30, env={**os.environ, "PYTHONPATH": str(root)})


WORDS = st.sampled_from(
    [
        *("data:", "model:", "name: ", "cnn", "extends: ", "x.yaml", "1e9", ".inf", "~", "!!int ", "&a ", "*a", "<<: "),
        *("{", "}", "[", "]", "- ", "? ", "! ", ": ", ", ", "\n", "  ", "|\n", "'", '"', "#", "---\n", "%YAML 1.1\n"),
        *("\ufeff", "\x85", "\\u"),
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=200), st.lists(WORDS, max_size=30).map(lambda words: "".join(words).encode())))
def test_random_bytes_raise_config_error_or_nothing(data: bytes, folder: Path) -> None:
    (folder / "x.yaml").write_bytes(data)
    try:
        load("x.yaml")
    except ConfigError as error:
        assert error.problems and all(line.isprintable() for line in str(error).splitlines())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    overrides=st.lists(
        st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=8).map(lambda w: "model=" + "".join(w)))
    )
)
def test_random_overrides_raise_config_error_or_nothing(overrides: list[str], folder: Path) -> None:
    try:
        load("base.yaml", overrides)
    except ConfigError as error:
        assert all(line.isprintable() for line in str(error).splitlines())
