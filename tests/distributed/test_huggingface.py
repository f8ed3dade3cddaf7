"""Trainings on a table of tokens and one of images: equal on any number of ranks, and stopped and gone on."""

import pytest

from tests.distributed.training import result, train
from tests.unit.dist_train.data.test_shards import png

hf = pytest.importorskip("datasets")
CONFIG = """
name: t
data: {name: huggingface, train: "ROOT/*.parquet", eval: ROOT/eval, inputs: image, targets: label,
       image_size: 8, cache_folder: ROOT/cache}
augment: [{name: random_resized_crop}]
model: {name: cnn, width: 4, dropout: 0.2}
loader: {workers: 0}
batch: {microbatches: 6, global_size: 12}
train: {duration: 2 epochs}
eval: {every: 1 epochs}
checkpoint: {every: 3 steps}
tracking: {samples: true, wandb: {mode: disabled}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["a", "b", "c"])})

    def made(first, count):
        numbers = range(first, first + count)
        content = {
            "image": [{"bytes": png(n, (9, 12)), "path": None} for n in numbers],
            "label": [n % 3 for n in numbers],
        }
        return hf.Dataset.from_dict(content, features)

    for number in range(3):
        made(20 * number, 20).to_parquet(str(folder / f"{number}.parquet"))
    made(60, 10).save_to_disk(str(folder / "eval"))
    (folder / "c.yaml").write_text(CONFIG.replace("ROOT", str(folder)))
    return folder


def test_any_number_of_ranks_and_a_stop_end_equal(folder, run_ranks):
    assert run_ranks(train, 1, folder, "c.yaml", "alone") == [0]
    assert run_ranks(train, 2, folder, "c.yaml", "chain", "train.stop_after=4 steps") == [0] * 2
    assert run_ranks(train, 3, folder, "c.yaml", "chain", "loader.workers=1") == [0] * 3
    assert result(folder / "alone") == result(folder / "chain")
    assert len(result(folder / "alone")[2]) == 10
