"""What a result depends on, told apart when it differs, and equal when it does not."""

import json
import os
import subprocess
import threading

import numpy as np
import pytest
import torch

from dist_train.checkpoint import provenance
from dist_train.config.schema import Custom, ImageFolder, RunConfig
from dist_train.config.source import load
from dist_train.data import datasets
from dist_train.data.datasets.base import Splits, TensorImages
from dist_train.data.datasets.image_folder import FileList
from tests.distributed.test_switches import write_images


def _images(count=50, size=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw)
    return TensorImages(images, torch.arange(count) % 7)


def test_images_in_memory_differ_by_one_pixel_or_one_target():
    known = _images().fingerprint()
    assert known == _images().fingerprint()
    pixel, target = _images(), _images()
    pixel.images[31, 2, 7, 7] ^= 1
    target.targets[12] += 1
    assert len({known, pixel.fingerprint(), target.fingerprint(), _images(seed=1).fingerprint()}) == 4


def test_of_many_images_in_memory_a_spread_part_is_read():
    many = TensorImages(torch.zeros(40, 1, 1024, 1024, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64))
    known = many.fingerprint()
    many.images[39] = 1  # every third is read, this one among them
    assert many.fingerprint() != known


def test_a_folder_of_images_is_the_same_wherever_it_lies(tmp_path, monkeypatch):
    write_images(tmp_path / "here" / "images")

    def of(root):
        config = ImageFolder(root=str(root), train="train", eval="eval", image_size=8)
        return provenance.data(datasets.build(config))

    known = of(tmp_path / "here" / "images")
    assert known["train"]["samples"] == 40 and known["evaluation"]["samples"] == 14
    assert known["train"]["content"] != known["evaluation"]["content"]
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere" / "images") == known
    monkeypatch.chdir(tmp_path / "elsewhere" / "images")
    assert of(".") == known


def test_names_that_run_into_each_other_are_told_apart():
    def of(*names):
        return FileList([b"/d/" + name for name in names], [0] * len(names), b"/d/").fingerprint()

    assert of(b"ab", b"c") == of(b"ab", b"c") != of(b"a", b"bc")


class _Own(torch.utils.data.Dataset):
    def __init__(self, version):
        self._version = version

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.zeros(2), 0

    def fingerprint(self):
        return self._version


def test_a_user_s_data_set_says_itself_which_it_is():
    splits = Splits(train=_Own("v1"), evaluation=np.arange(5), classes=tuple(f"class {n}" for n in range(1000)))
    found = provenance.data(splits)
    assert found["train"] == {"samples": 3, "content": "v1"} and found["evaluation"] == {"samples": 5}
    assert found["classes"].startswith("1000, ") and len(found["classes"]) < 20


def test_code_is_this_package_the_modules_that_the_config_names_and_the_commit(monkeypatch, tmp_path):
    config = load("configs/own_components.yaml")
    assert isinstance(config.model, Custom)
    found = provenance.code(config)
    assert (
        {"dist_train", "dist_train.examples.spirals"}
        <= found.keys()
        <= {"dist_train", "dist_train.examples.spirals", "commit"}
    )
    assert found == provenance.code(config)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "t")
        monkeypatch.setenv(f"{name}_EMAIL", "t@t")
    (tmp_path / "net.py").write_text("width = 1\n")
    for command in (["init", "-q"], ["add", "net.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def test_the_commit_tells_changes_apart(repository):
    ask = provenance._commit.__wrapped__
    clean = ask()
    (repository / "net.py").write_text("width = 2\n")
    second = ask()
    (repository / "net.py").write_text("width = 3\n")
    third = ask()
    assert len(clean) == 12 and second.startswith(f"{clean}-dirty-") and len({clean, second, third}) == 3


def test_a_fork_waits_for_what_git_is_being_asked(tmp_path, monkeypatch):
    """Else the new process keeps git's pipes open, and whoever asked waits for it instead of git."""
    began, go = tmp_path / "began", tmp_path / "go"
    os.mkfifo(began)
    os.mkfifo(go)
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\necho > {began}\nread line < {go}\necho 1c496ce3a2b1\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    provenance._commit.cache_clear()
    forked = []

    def fork():
        if (pid := os.fork()) == 0:
            os._exit(0)
        forked.append(pid)

    try:
        provenance.ask_for_commit()
        began.read_text()
        kept = os.open(go, os.O_RDWR)  # else writing to it waits for a reader, which git's patience may have ended
        forking = threading.Thread(target=fork)
        forking.start()
        forking.join(0.2)  # it would fork at once
        assert forked == []
        os.write(kept, b"\n")
        forking.join()
        assert provenance.commit() == "1c496ce3a2b1"
        assert os.waitpid(forked[0], 0)[1] == 0
    finally:
        os.close(kept)
        provenance._commit.cache_clear()


def test_outside_of_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance._commit.__wrapped__() is None


def test_all_of_it_is_json_that_reads_back_as_it_was():
    content = {
        "data": {"name": "digits"},
        "model": {"name": "a.b:c", "args": {"weights": {10: 0.5, 9: 1.5}, "odd": float("inf")}},
    }
    config = RunConfig.model_validate(content)
    splits = Splits(train=_images(), evaluation=_images(20))
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": "examples.spirals:SpiralNet"})})
    found = provenance.surroundings(config, splits, torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found
    assert json.dumps(found, sort_keys=True) == json.dumps(json.loads(json.dumps(found)), sort_keys=True)
    assert found["torch"] == torch.__version__ and found["machine"]["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("kind", ["UNIX Open Kernel Module for x86_64", "UNIX x86_64 Kernel Module"])
def test_a_gpus_driver_and_libraries_are_told_apart(tmp_path, monkeypatch, kind):
    driver = tmp_path / "version"
    driver.write_text(f"NVRM version: NVIDIA {kind}  570.133.20  Release Build\nGCC version: gcc version 12.3.0\n")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    found = provenance.gpu_libraries(driver)
    assert (found["driver"], found["cublas_workspace"]) == ("570.133.20", ":16:8")
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert "matmul" in provenance.gpu_libraries(driver)["tf32"]
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert "matmul" not in provenance.gpu_libraries(driver)["tf32"]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert provenance.gpu_libraries(tmp_path / "nothing")["driver"] == "unknown"
    assert json.loads(json.dumps(found)) == found
