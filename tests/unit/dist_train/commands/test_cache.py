"""`dist-train cache`: what is there, filling it, finding what is wrong, and deleting it."""

import json
import os

import pytest

from dist_train.commands.cache import main
from dist_train.config.requests import CacheRequest
from dist_train.data.cache.files import INDEX, PIXELS
from tests.exactness.matrix import make_images

CONFIG = """
data: {name: image_folder, root: ROOT/images, eval_fraction: 0.2, image_size: 8, cache: {folder: ROOT/cache, side: 9}}
augment: [{name: random_resized_crop}]
model: {name: cnn}
"""
IMAGES = 68


@pytest.fixture
def folder(tmp_path):
    make_images(tmp_path / "images")
    (tmp_path / "c.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    return tmp_path


def ask(folder, capsys, action="show", *overrides):
    """The exit code, and the object that is printed."""
    request = CacheRequest(target=str(folder / "c.yaml"), overrides=overrides, action=action, as_json=True)
    try:
        code = main(request)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else said.err


def there(answer):
    return {" ".join(part["splits"]): (part["there"], part["images"]) for part in answer["parts"]}


def test_it_is_filled_checked_and_deleted(folder, capsys):
    code, shown = ask(folder, capsys)
    assert (code, there(shown)) == (0, {"train": (0, 54), "evaluation": (0, 14)}) and not (folder / "cache").exists()
    code, built = ask(folder, capsys, "build")
    assert (code, there(built)) == (0, {"train": (54, 54), "evaluation": (14, 14)})
    assert all(part["bytes"] >= 4096 * part["images"] for part in built["parts"])
    assert [part["sound"] for part in ask(folder, capsys, "verify")[1]["parts"]] == [54, 14]
    code, dropped = ask(folder, capsys, "drop")
    assert code == 0 and [part["bytes"] for part in dropped["parts"]] == [0, 0] and not os.listdir(folder / "cache")


def test_what_is_wrong_is_found_and_mended(folder, capsys):
    ask(folder, capsys, "build", "data.cache.side=null", "augment=[]")
    [cache] = (folder / "cache").iterdir()
    for name in (PIXELS, INDEX):
        with open(cache / name, "r+b") as file:
            os.pwrite(file.fileno(), b"\xff\xff", 0 if name == PIXELS else 5 * 64 + 3)
    victim = sorted((folder / "images").glob("*/*"))[10]
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, found = ask(folder, capsys, "verify", "data.cache.side=null", "augment=[]")
    [part] = found["parts"]
    assert code == 1 and {name: part[name] for name in ("damaged", "changed")} == {"damaged": 2, "changed": 1}
    victim.write_bytes(content)
    assert ask(folder, capsys, "build", "data.cache.side=null", "augment=[]")[0] == 0
    assert ask(folder, capsys, "verify", "data.cache.side=null", "augment=[]")[0] == 0


def test_images_that_cannot_be_read_or_kept_are_told(folder, capsys):
    assert ask(folder, capsys, "build", "data.cache.limit=0kB")[0] == 1
    sorted((folder / "images").glob("*/*"))[10].write_bytes(b"no image")
    code, _ = ask(folder, capsys, "build")
    assert code == 13


def test_without_a_cache_it_says_how_to_have_one(folder, capsys):
    code, said = ask(folder, capsys, "show", "data.cache=null")
    assert code == 2 and "data.cache=disk" in said
