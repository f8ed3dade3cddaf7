"""Windows of tokens through a transformer: the same bits on any number of ranks, and after a resume on another."""

import json
import math
import random

import pytest

from dist_train.errors import ExitCode
from tests.distributed.test_exactness import dies
from tests.distributed.training import evaluate_run, result, train

CONFIG = """
name: t
data: {name: text, root: {folder}/texts, tokenizer: chars, context: 16, stride: 5, cache_folder: {folder}/cache}
model: {name: gpt, layers: 2, heads: 2, width: 16, dropout: 0.1}
task: {name: language_model}
optimizer: {name: adamw, lr: 0.01}
batch: {microbatches: 6, global_size: 24}
train: {duration: 12 steps, clip_norm: 1.0}
eval: {every: 6 steps}
checkpoint: {every: 100 steps}
tracking: {samples: true, texts: {count: 2, length: 30, prompt: "fox "}, wandb: {mode: disabled}}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    words, draw = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"], random.Random(0)
    (tmp_path / "texts" / "words.txt").write_text(" ".join(draw.choice(words) for _ in range(600)))
    (tmp_path / "text.yaml").write_text(CONFIG.replace("{folder}", str(tmp_path)))
    return tmp_path


def test_any_number_of_ranks_and_any_loading_ends_in_the_same_bits(run_ranks, folder):
    for ranks, workers in ((1, 0), (2, 1)):
        arguments = (folder, "text.yaml", f"w{ranks}", f"loader.workers={workers}")
        assert run_ranks(train, ranks, *arguments) == [0] * ranks
    fingerprint, rows, samples = result(folder / "w1")
    assert result(folder / "w2") == (fingerprint, rows, samples)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.3
    texts = [row["texts"] for row in rows if "texts" in row]
    assert len(texts) == 2 and texts[0] != texts[1]
    assert {len(text) for two in texts for text in two} == {34} and texts[1][0] != texts[1][1]
    log = (folder / "w2/logs/rank0.log").read_text()
    assert all(text.startswith("fox ") and f"\n{text}\n" in log for two in texts for text in two)
    assert not [row for row in rows if {"text", "tokens_per_s"} & row.keys()]
    assert rows[-1]["bits_per_byte"] == pytest.approx(losses[-1] / math.log(2))  # a character here is a byte
    seen = [index for row in map(json.loads, samples) for part in row["indices"] for index in part]
    assert len(set(seen)) == len(seen) == 12 * 24


def test_a_resume_on_another_number_of_ranks_ends_in_the_same_bits(run_ranks, folder):
    bf16 = "train.precision=bf16"
    run_ranks(train, 2, folder, "text.yaml", "whole", bf16, "tracking.texts.count=0")
    run_ranks(train, 1, folder, "text.yaml", "parts", bf16, "train.stop_after=5 steps")
    assert run_ranks(train, 3, folder, "text.yaml", "parts", bf16) == [0] * 3
    assert "texts" not in str(result(folder / "whole")[1])
    plain = [{key: value for key, value in row.items() if key != "texts"} for row in result(folder / "parts")[1]]
    assert (result(folder / "parts")[0], plain) == result(folder / "whole")[:2]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tracking.texts.prompt=\u00fc"], ExitCode.DATA, "there is no token for the character 'ü'"),
        (['tracking.texts.prompt=""'], ExitCode.DATA, "tracking.texts.prompt has no token"),
        (["data=synthetic", "data.size=48", "task=classification", "model=cnn"], ExitCode.CONFIG, "writes none"),
    ],
)
def test_texts_that_cannot_be_written_are_refused_before_the_first_step(run_ranks, folder, capfd, words, code, said):
    assert run_ranks(train, 1, folder, "text.yaml", "run", *words) == [code]


def test_killed_on_1_and_on_3_ranks_and_gone_on_with_2_it_ends_as_undisturbed_on_1(run_ranks, folder):
    """The log of samples too: no window of the epoch twice, none left out."""
    often = "checkpoint.every=2 steps"
    assert run_ranks(train, 1, folder, "text.yaml", "whole", often) == [0]
    arguments = (folder, "text.yaml", "pieces", often)
    dies(run_ranks, 1, [0], ("step", 4), *arguments)
    dies(run_ranks, 3, [2], ("step", 4), *arguments)
    assert run_ranks(train, 2, *arguments) == [0, 0]
    whole = result(folder / "whole")
    assert result(folder / "pieces") == whole
    seen = [index for line in whole[2] for part in json.loads(line)["indices"] for index in part]
    assert len(seen) == len(set(seen)) == 12 * 24


def test_a_resume_notices_another_text_and_an_evaluation_other_characters(run_ranks, folder):
    run_ranks(train, 1, folder, "text.yaml", "run", "train.stop_after=5 steps")
    with (folder / "texts" / "words.txt").open("a") as file:
        file.write(" dog")
    assert run_ranks(train, 1, folder, "text.yaml", "run") == [ExitCode.CANNOT_RESUME]
    assert run_ranks(evaluate_run, 1, folder / "run") == [0]
    (folder / "texts" / "words.txt").write_text((folder / "texts" / "words.txt").read_text().replace("z", "Z"))
    assert run_ranks(evaluate_run, 1, folder / "run") == [ExitCode.DATA]  # as many characters, and others
