"""Runs as a stranger might send them: a real run, with something in it that no training has written.

Each kind of forgery is a function of a run directory and dice. Where a checkpoint is changed its manifest is made to
fit, as anybody can: its sha256 tells of damage, and not of who wrote it.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dist_train.checkpoint.manifest import MANIFEST
from dist_train.config.schema import JOB_SECTIONS, RunConfig

Forgery = Callable[[Path, random.Random], None]
CANARY = "DIST_TRAIN_CANARY"
"""Environment variable: the file that code of the stranger's makes."""
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, -(2**63), 1e308, float("nan"), "", "x", "a\0b", "\x1b[2J", "ü" * 5000,
    [], [[]], {}, {"a": 1}, "../../x", "/dev/zero", ".inf", "1e400", "9" * 5000, "\ud800",
)  # fmt: skip
HUGE = 1 << 40
STATE_FILES = ("config.yaml", "state.json", "metrics.jsonl", "environment.json", "lives.jsonl")


class Pickled:
    """Makes the canary when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, (os.environ[CANARY],))


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def sign(checkpoint: Path, manifest: dict[str, Any]) -> None:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    manifest["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=1))


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """A file of the checkpoint, its manifest made to fit."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sign(checkpoint, manifest)


def config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def put_config(run: Path, config: dict[str, Any]) -> None:
    """In config.yaml and in every manifest."""
    (run / "config.yaml").write_text(json.dumps(config))
    for checkpoint in (run / "checkpoints").glob("step-*"):
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        manifest["config"] = config
        sign(checkpoint, manifest)


def leaves(tree: Any, path: tuple = ()) -> list[tuple]:
    """Key paths of everything in it, sections included."""
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [*found, *(inner for key, value in items for inner in leaves(value, (*path, key)))]


def change(tree: Any, dice: random.Random) -> None:
    """Puts something odd in place of anything in it, or takes it away."""
    *above, last = dice.choice(leaves(tree))
    for key in above:
        tree = tree[key]
    if dice.random() < 0.1:
        del tree[last]
    else:
        tree[last] = dice.choice(ODD)


# ---------------------------------------------------------------- configs that name code


def _names(section: str, name: str, args: dict[str, Any]) -> Forgery:
    def forge(run: Path, dice: random.Random) -> None:
        config = config_of(run)
        config[section] = {"name": name, "args": args, **({"lr": 0.1} if section == "optimizer" else {})}
        put_config(run, config)

    return forge


def _in_the_shell(run: Path, dice: random.Random) -> None:
    config = config_of(run)
    section = dice.choice(JOB_SECTIONS)
    key = dice.choice(getattr(RunConfig(**config), section).executes)
    values = {"prefix": f"touch {os.environ[CANARY]}", "options": ["--export=ALL,PYTHONPATH=."]}
    config[section][key] = values.get(key, "evil.sh")
    put_config(run, config)


def _fewer_files(*names: str) -> Forgery:
    """A run that names code, with these alone of its files."""

    def forge(run: Path, dice: random.Random) -> None:
        _names("model", "canary:Thing", {})(run, dice)
        for path in list(run.iterdir()):
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return forge


def _checkpoint_alone(run: Path, dice: random.Random) -> None:
    """In the place of the run; beside its manifest a config.yaml."""
    _names("model", "canary:Thing", {})(run, dice)
    shutil.copy(run / "config.yaml", newest(run))
    alone = newest(run).rename(run.with_name("alone"))
    shutil.rmtree(run)
    alone.rename(run)


def _best_alone(run: Path, dice: random.Random) -> None:
    _names("model", "canary:Thing", {})(run, dice)
    kept = newest(run).rename(run / "kept")
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    kept.rename(run / "checkpoints" / "best")
    for path in list(run.iterdir()):
        if path.name not in ("config.yaml", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _weights_of(path: str) -> Forgery:
    def forge(run: Path, dice: random.Random) -> None:
        os.mkfifo(run / "pipe")
        config = config_of(run)
        config["model"]["start_weights"] = path.format(run=run)
        put_config(run, config)

    return forge


def _data_in(path: str) -> Forgery:
    def forge(run: Path, dice: random.Random) -> None:
        folder = run / "images" / "train" / "cat"
        folder.mkdir(parents=True)
        os.mkfifo(folder / "a.png")
        config = config_of(run)
        config["data"] = {"name": "image_folder", "root": path.format(run=run), "train": "train", "eval": "train"}
        put_config(run, config)

    return forge


_LOADED = "{here}/evil.{kind}"
CODE: dict[str, Forgery] = {
    **{f"{section} canary": _names(section, "canary:Thing", {}) for section in ("data", "model", "task", "optimizer")},
    "collect_env": _names("model", "torch.utils.collect_env:run", {"command": f"touch ${CANARY}"}),
    "torch.load": _names("model", "torch:load", {"f": "evil.pt", "weights_only": False}),
    "numpy.load": _names("data", "numpy:load", {"file": "evil.npy", "allow_pickle": True}),
    "torch.hub": _names("model", "torch.hub:load", {"repo_or_dir": ".", "model": "thing", "source": "local"}),
    "of the standard library": _names("task", "os:system", {"command": "true"}),
    "of the shell": _in_the_shell,
    "a config and logs": _fewer_files("config.yaml", "environment.json", "logs"),
    "a checkpoint alone": _checkpoint_alone,
    "a config and the best": _best_alone,
    "weights in a pipe": _weights_of("{run}/pipe"),
    "weights in /dev/zero": _weights_of("/dev/zero"),
    "data in a pipe": _data_in("{run}/images"),
    "data in /dev": _data_in("/dev"),
}

# ---------------------------------------------------------------- texts that are no configs


def _config_text(text: str | bytes) -> Forgery:
    return lambda run, dice: (run / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


def _config_key(run: Path, dice: random.Random) -> None:
    config = config_of(run)
    for _ in range(dice.randint(1, 3)):
        change(config, dice)
    put_config(run, config)


def _config_in_file_alone(run: Path, dice: random.Random) -> None:
    config = config_of(run)
    change(config, dice)
    (run / "config.yaml").write_text(json.dumps(config))


def _giant(run: Path, dice: random.Random) -> None:
    config = config_of(run)
    config["model"] = dice.choice(
        (
            {"name": "mlp", "hidden": [10**9, 10**9]},
            {"name": "mlp", "hidden": [2**62]},
            {"name": "cnn", "width": 10**8},
            {"name": "resnet_cifar", "depth": 6 * 10**8 + 2},
            {"name": "resnet_cifar", "depth": 8, "width": 2**61},
        )
    )
    put_config(run, config)


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS: dict[str, Forgery] = {
    "extends": lambda run, dice: (run / "config.yaml").write_text("extends: ../c.yaml\n"),
    "a YAML tag": _config_text("name: !!python/object/apply:os.system ['touch x']\n"),
    "aliases": _config_text(_BOMB),
    "deep YAML": _config_text("x: " + "[" * 100_000),
    "no UTF-8": _config_text(b"name: \xff\xfe\xfa\n"),
    "zero bytes": _config_text(b"\0" * 1000),
    "an empty config": _config_text(""),
    "a list": _config_text("- a\n- b\n"),
    "keys of the config": _config_key,
    "keys of config.yaml alone": _config_in_file_alone,
    "a giant": _giant,
}

# ---------------------------------------------------------------- files that are none


def _at(run: Path, dice: random.Random) -> Path:
    names = [*(run / name for name in STATE_FILES), *newest(run).iterdir(), *(run / ".lease").iterdir()]
    names += [path for path in (run / "generations").rglob("*.json")]
    return dice.choice(sorted(names))


def _emptied(run: Path, dice: random.Random) -> Path:
    place = _at(run, dice)
    place.unlink(missing_ok=True)
    return place


def _odd_files(do: Callable[[Path], object]) -> Forgery:
    return lambda run, dice: do(_emptied(run, dice)) and None


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE)


def _hole_that_fits(run: Path, dice: random.Random) -> None:
    name = dice.choice(("model.safetensors", "optimizer.safetensors", "state.json"))
    _hole(newest(run) / name)
    manifest = json.loads((newest(run) / MANIFEST).read_text())
    manifest["files"][name] = {"size": HUGE, "sha256": "0" * 64}
    sign(newest(run), manifest)


def _linked_folder(run: Path, dice: random.Random) -> None:
    name = dice.choice(("checkpoints", "logs", "generations", ".lease"))
    shutil.rmtree(run / name)
    (run / name).symlink_to(dice.choice(("/dev", "/", str(run), "nowhere", "../victim")))


def _linked_log(run: Path, dice: random.Random) -> None:
    name = dice.choice(("logs/rank0.log", ".lock-node0", "metrics.jsonl", "lives.jsonl"))
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(run.parent / "victim" / "file")


def _odd_names(run: Path, dice: random.Random) -> None:
    for name in ("1x", "٣", "²", "99999999999999999999", "-1", "a\nb", "\x1b[31m", os.fsdecode(b"9\xff")):
        (run / "generations" / name / "nodes").mkdir(parents=True)
        (run / "checkpoints" / f"step-{name}").mkdir()
        (run / ".lease" / name).write_text("x")


FILES: dict[str, Forgery] = {
    "a pipe": _odd_files(os.mkfifo),
    "a folder": _odd_files(lambda path: path.mkdir()),
    "a link to /dev/zero": _odd_files(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _odd_files(lambda path: path.symlink_to(path)),
    "a hole": _odd_files(_hole),
    "a hole that fits": _hole_that_fits,
    "deep JSON": _odd_files(lambda path: path.write_text("[" * 100_000)),
    "deep objects": _odd_files(lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000 + "\n")),
    "no text": _odd_files(lambda path: path.write_bytes(b"\xff\xfe\x00\xfa" * 100)),
    "nothing": _odd_files(lambda path: path.touch()),
    "not there": _odd_files(lambda path: None),
    "another type": _odd_files(lambda path: path.write_text('["x", 1]\n')),
    "a number": _odd_files(lambda path: path.write_text("9" * 4000)),
    "a folder that is a link": _linked_folder,
    "a link to write through": _linked_log,
    "odd names": _odd_names,
}

# ---------------------------------------------------------------- values of other types


def _json(name: str) -> Forgery:
    def forge(run: Path, dice: random.Random) -> None:
        content = json.loads((run / name).read_text())
        for _ in range(dice.randint(1, 3)):
            change(content, dice)
        (run / name).write_text(json.dumps(content))

    return forge


def _of_generation(run: Path, dice: random.Random) -> None:
    place = dice.choice(sorted((run / "generations").rglob("*.json")))
    content = json.loads(place.read_text())
    for _ in range(dice.randint(1, 4)):
        change(content, dice)
    place.write_text(json.dumps(content))


def _lines(name: str) -> Forgery:
    def forge(run: Path, dice: random.Random) -> None:
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        for row in rows:
            change(row, dice)
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    return forge


def _claim(run: Path, dice: random.Random) -> None:
    place = max((run / ".lease").iterdir())
    owner, _, count = place.read_bytes().partition(b"\n")
    content = json.loads(owner)
    change(content, dice)
    place.write_bytes(json.dumps(content).encode() + b"\n" + count)


def _manifest(run: Path, dice: random.Random) -> None:
    manifest = json.loads((newest(run) / MANIFEST).read_text())
    del manifest["config"]  # which has a kind of its own
    change(manifest, dice)
    sign(newest(run), manifest)


def _manifest_file(name: str) -> Forgery:
    def forge(run: Path, dice: random.Random) -> None:
        manifest = json.loads((newest(run) / MANIFEST).read_text())
        manifest["files"][name] = manifest["files"]["state.json"]
        sign(newest(run), manifest)

    return forge


def _progress(run: Path, dice: random.Random) -> None:
    content = json.loads((newest(run) / "state.json").read_text())
    for _ in range(dice.randint(1, 3)):
        change(content, dice)
    put(newest(run), "state.json", json.dumps(content).encode())


def _deep_progress(run: Path, dice: random.Random) -> None:
    put(newest(run), "state.json", b"[" * 200_000)


def _pickled(run: Path, dice: random.Random) -> None:
    put(newest(run), dice.choice(("model.safetensors", "optimizer.safetensors", "state.json")), pickle.dumps(Pickled()))


VALUES: dict[str, Forgery] = {
    "state.json": _json("state.json"),
    "environment.json": _json("environment.json"),
    "a generation": _of_generation,
    "metrics.jsonl": _lines("metrics.jsonl"),
    "lives.jsonl": _lines("lives.jsonl"),
    "the lease": _claim,
    "a manifest": _manifest,
    "a file above": _manifest_file("../../../victim/file"),
    "an absolute file": _manifest_file("/etc/passwd"),
    "a file without a name": _manifest_file("a\0b"),
    "the progress": _progress,
    "deep progress": _deep_progress,
    "pickle": _pickled,
}

# ---------------------------------------------------------------- tensors


def _tensors(file: str, edit: Callable[[dict[str, Any], random.Random], object]) -> Forgery:
    """The header of a safetensors file, changed."""

    def forge(run: Path, dice: random.Random) -> None:
        content = (newest(run) / file).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        edit(header, dice)
        text = json.dumps(header).encode()
        put(newest(run), file, struct.pack("<Q", len(text)) + text + content[8 + length :])

    return forge


def _any(header: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    return header[dice.choice([name for name in header if name != "__metadata__"])]


def _raw(prefix: bytes) -> Forgery:
    return lambda run, dice: put(newest(run), "model.safetensors", prefix)


def _tensor_kinds(file: str) -> dict[str, Forgery]:
    return {
        "overlapping": _tensors(file, lambda h, d: _any(h, d).update(data_offsets=[0, 8])),
        "beyond the end": _tensors(file, lambda h, d: _any(h, d).update(data_offsets=[0, 2**62])),
        "negative offsets": _tensors(file, lambda h, d: _any(h, d).update(data_offsets=[-8, 8])),
        "overflowing": _tensors(file, lambda h, d: _any(h, d).update(shape=[2**40, 2**40])),
        "of another dtype": _tensors(file, lambda h, d: _any(h, d).update(dtype=d.choice(("F8_E4M3", "I32", "X", 7)))),
        "of another shape": _tensors(file, lambda h, d: _any(h, d).update(shape=[*_any(h, d)["shape"], 1])),
        "missing": _tensors(file, lambda h, d: h.pop(d.choice(sorted(h)))),
        "renamed": _tensors(file, lambda h, d: h.update({"../x": h.pop(d.choice(sorted(h)))})),
        "anything": _tensors(file, change),
    }


TENSORS: dict[str, Forgery] = {
    **{f"model {kind}": forge for kind, forge in _tensor_kinds("model.safetensors").items()},
    **{f"optimizer {kind}": forge for kind, forge in _tensor_kinds("optimizer.safetensors").items()},
    "a header without end": _raw(struct.pack("<Q", 2**63) + b"{}"),
    "a header of 100 MB": _raw(struct.pack("<Q", 10**8) + b"{}"),
    "a deep header": _raw(struct.pack("<Q", 100_000) + b"[" * 100_000),
    "no header": _raw(b"\0" * 8),
    "an empty file": _raw(b""),
}
KINDS: dict[str, Forgery] = {**CODE, **TEXTS, **FILES, **VALUES, **TENSORS}


def forge(run: Path, number: int, seed: int) -> str:
    """Makes the forged run of this number of a run; returns what was done. Each kind comes once, then two at a time."""
    dice = random.Random(f"{seed} {number}")
    order = sorted(KINDS, key=lambda kind: random.Random(f"{seed} {kind}").random())
    chosen = [order[number]] if number < len(order) else dice.sample(order, 2)
    for kind in chosen:
        try:
            KINDS[kind](run, dice)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # one forgery has taken what the other needs
            if len(chosen) == 1:
                raise
    return " and ".join(chosen)
