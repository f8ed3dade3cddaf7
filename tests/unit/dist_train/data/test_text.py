"""Text and tokens: which windows there are, how a text becomes tokens, and what is said of files that are wrong."""

import json
import multiprocessing
import os
import pickle
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dist_train import tasks
from dist_train.config.problems import ConfigError
from dist_train.config.schema import LanguageModel, Text, Tokens
from dist_train.config.source import load
from dist_train.data import datasets
from dist_train.data.datasets import text
from dist_train.data.datasets.windows import TokenFile, TokenWindows
from dist_train.errors import ExitCode, UserError

VERSE = "Two roads diverged in a yellow wood,\nand sorry I could not travel both – naïve, à la 森.\n" * 40


@pytest.fixture
def verse(tmp_path: Path) -> Path:
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    return tmp_path / "verse.txt"


def config(root: Path, **more) -> Text:
    return Text(**{"root": str(root), "cache_folder": str(Path(root).parent / "cache"), "context": 16, **more})


def tokens_of(dataset) -> torch.Tensor:
    """The text that windows side by side were cut from, as far as it is in whole windows."""
    inputs, targets = dataset.__getitems__(np.arange(len(dataset)))
    assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == targets.shape
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    return torch.cat([inputs.flatten(), targets[-1, -1:]])


# ---------------------------------------------------------------- windows


@settings(deadline=None)
@given(size=st.integers(2, 60), context=st.integers(1, 12), stride=st.integers(1, 15), first=st.integers(0, 5))
def test_windows_begin_at_each_stride_and_are_whole(tmp_path_factory, size, context, stride, first):
    path = tmp_path_factory.getbasetemp() / "numbers.bin"
    np.arange(size + first + 3, dtype="<u2").tofile(path)
    part = TokenFile(path=path, source="numbers", dtype="<u2", first=first, count=size, content="")
    if size <= context:
        with pytest.raises(UserError, match=f"set data.context to {size - 1} or less"):
            TokenWindows(part, context, stride, 100, None)
        return
    windows = TokenWindows(part, context, stride, 100, None)
    inputs, targets = windows.__getitems__(np.arange(len(windows)))
    assert inputs.tolist() == [
        list(range(first + start, first + start + context)) for start in range(0, size - context, stride)
    ]
    assert torch.equal(targets, inputs + 1)


def test_windows_side_by_side_are_the_text_and_the_held_out_end_shares_no_token(verse):
    splits = datasets.build(config(verse, eval_fraction=0.25))
    whole = verse.read_bytes()
    held = round(len(whole) * 0.25)
    train, evaluation = whole[:-held], whole[-held:]
    for dataset, part in ((splits.train, train), (splits.evaluation, evaluation)):
        found = bytes(tokens_of(dataset).tolist())
        assert part.startswith(found) and len(part) - len(found) < 16
        assert len(dataset) == (len(part) - 1) // 16
    assert (splits.shape, splits.vocabulary, splits.token_bytes) == ((16,), 256, (1,) * 256)


@pytest.mark.parametrize(("ignored", "known"), [(-100, 8), (10**6, 8), (0, None)])
def test_how_many_targets_a_window_has_is_known_where_none_may_be_left_out(verse, ignored, known):
    splits = datasets.build(Text(root=str(verse), context=8))
    task = tasks.build(LanguageModel(ignore_index=ignored), None, **splits.of_tokens)
    assert task.targets_per_sample == known
    inputs, targets = splits.train.__getitems__(np.arange(3))
    scores = torch.zeros(*targets.shape, splits.vocabulary)
    assert known is None or int(task.loss(scores, targets).count) == 3 * known


def test_a_set_of_ones_own_is_counted_whatever_its_attributes_are_called(verse):
    class Own:
        is_whole = True

    splits = replace(datasets.build(Text(root=str(verse), context=8)), train=Own())
    assert splits.of_tokens["vocabulary"] == 256 and splits.of_tokens["window"] is None


def test_a_stride_is_for_training_alone(verse):
    splits = datasets.build(config(verse, stride=1))
    held = round(len(verse.read_bytes()) * 0.1)
    assert len(splits.train) == len(verse.read_bytes()) - held - 16
    assert len(splits.evaluation) == (held - 1) // 16


# ---------------------------------------------------------------- tokenizers


def test_characters_are_those_of_all_files_and_come_back(tmp_path):
    for name, content in (("a", "abba\n" * 20), ("b", "abc ä\n" * 20)):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "x.txt").write_text(content)
    splits = datasets.build(config(tmp_path / "texts", train="a", eval="b", tokenizer="chars"))
    assert splits.vocabulary == len("\n abcä") and splits.token_bytes == (1, 1, 1, 1, 1, 2)
    assert splits.evaluation.decode(tokens_of(splits.evaluation)).startswith("abc ä\nabc")
    assert splits.train.encode("cab") == [4, 2, 3]
    (tmp_path / "texts/b/x.txt").write_text("abd ä\n" * 20)
    other = datasets.build(config(tmp_path / "texts", train="a", eval="b", tokenizer="chars"))
    assert other.vocabulary == splits.vocabulary and other.tokenizer != splits.tokenizer
    with pytest.raises(UserError, match="no token for the character 'z'"):
        splits.train.encode("az")


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """A byte-level BPE of 300 tokens, of which `<|end|>` is a special one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([VERSE], trainer)
    made.save(str(tmp_path / "bpe.json"))
    return tmp_path / "bpe.json"


def test_a_file_of_tokenizers_gives_its_tokens_and_their_bytes(verse, bpe):
    splits = datasets.build(config(verse, tokenizer=str(bpe), eval_fraction=0.5))
    expected = Tokenizer.from_file(str(bpe)).encode(VERSE).ids
    found = tokens_of(splits.train).tolist()
    assert found == expected[: len(found)] and splits.vocabulary == 300
    assert VERSE.startswith(splits.train.decode(found))
    lengths = sum(splits.token_bytes[token] for token in expected)
    assert lengths == len(VERSE.encode()) and splits.token_bytes[0] == len("<|end|>")


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe"])
def test_a_text_in_pieces_has_the_same_characters(verse, bpe, tokenizer, monkeypatch):
    monkeypatch.setattr(text, "_PIECE", 200)
    name = str(bpe) if tokenizer == "bpe" else tokenizer
    train = datasets.build(config(verse, tokenizer=name)).train
    assert VERSE.startswith(train.decode(tokens_of(train)))


# ---------------------------------------------------------------- the cache


def test_a_text_is_tokenised_once_and_anew_when_it_has_changed(verse):
    def folders():
        return {path: path.stat().st_mtime_ns for path in (verse.parent / "cache").iterdir()}

    first = datasets.build(config(verse))
    before = folders()
    again = datasets.build(config(verse, context=8))
    assert folders() == before and len(before) == 1
    assert again.train.fingerprint() == first.train.fingerprint()
    assert first.train.fingerprint() != first.evaluation.fingerprint()
    stat = verse.stat()
    verse.write_text(VERSE.replace("yellow", "bellow"), encoding="utf-8")
    os.utime(verse, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # no trust in its time
    changed = datasets.build(config(verse))
    assert len(folders()) == 2 and changed.train.fingerprint() != first.train.fingerprint()
    assert "yellow" in first.train.decode(tokens_of(first.train))
    assert "bellow" in changed.train.decode(tokens_of(changed.train))


def test_one_rank_tokenises_and_the_others_find_it(verse):
    entered = []

    @contextmanager
    def first():
        entered.append(os.path.isdir(verse.parent / "cache"))
        yield
        entered.append(len(os.listdir(verse.parent / "cache")))

    datasets.build(config(verse), first)
    assert entered == [False, 1]


def _build_at_once(barrier, verse, queue):
    barrier.wait()
    queue.put(datasets.build(config(verse)).train.fingerprint())


def test_nodes_that_tokenise_at_once_end_with_one_folder(verse):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.SimpleQueue()
    nodes = [context.Process(target=_build_at_once, args=(barrier, verse, queue)) for _ in range(3)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()
    assert len({queue.get() for _ in nodes}) == 1
    assert [name[0] for name in os.listdir(verse.parent / "cache")] != ["."]
    assert len(os.listdir(verse.parent / "cache")) == 1


def test_the_cache_is_where_the_environment_says(verse, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(verse.parent / "xdg"))
    datasets.build(Text(root=str(verse), context=16))
    assert [path.name for path in (verse.parent / "xdg/dist-train/tokens").glob("*/*")]


def test_a_damaged_cache_is_told(verse):
    datasets.build(config(verse))
    [target] = (verse.parent / "cache").glob("*/train.bin")
    os.truncate(target, 100)
    with pytest.raises(UserError, match=r"train\.bin has another length .*: remove it") as raised:
        datasets.build(config(verse))
    assert raised.value.code == ExitCode.DATA


def test_a_loading_process_gets_the_place_of_the_tokens_and_not_the_tokens(verse):
    train = datasets.build(config(verse)).train
    sent = pickle.dumps(train)
    assert len(sent) < 2_000
    assert torch.equal(tokens_of(pickle.loads(sent)), tokens_of(train))  # noqa: S301


# ---------------------------------------------------------------- tokens


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    for name, count in (("train", 1000), ("val", 100)):
        (np.arange(count) % 65).astype("<u2").tofile(tmp_path / f"{name}.bin")
    return tmp_path


def test_tokens_are_read_as_nanogpt_writes_them(binary):
    splits = datasets.build(Tokens(root=str(binary), context=10, vocabulary=65))
    assert tokens_of(splits.train).tolist() == [k % 65 for k in range(991)]
    assert (len(splits.train), len(splits.evaluation), splits.test, splits.vocabulary) == (99, 9, None, 65)
    with pytest.raises(UserError, match=r"data\.tokenizer names a file that does"):
        splits.train.decode([1])


def test_tokens_become_text_by_their_tokenizer(binary, bpe):
    splits = datasets.build(Tokens(root=str(binary), context=10, vocabulary=304, tokenizer=str(bpe)))
    assert len(splits.token_bytes) == 304 and splits.token_bytes[300:] == (0,) * 4
    assert splits.train.decode([0]) == "<|end|>"


def test_a_large_file_of_tokens_is_looked_at_here_and_there_and_each_window_when_it_is_read(tmp_path):
    large = np.zeros(20 << 20, dtype="<u2")
    place = int(large.size * 10.6 / 63)  # between two blocks
    large[place] = 70
    for name in ("train", "val"):
        large.tofile(tmp_path / f"{name}.bin")
    splits = datasets.build(Tokens(root=str(tmp_path), context=64, vocabulary=65))
    with pytest.raises(UserError, match="holds the token 70, and there are the tokens 0 to 64"):
        splits.train.__getitems__(np.array([place // 64]))
    before = splits.train.fingerprint()
    large[-1] = 1
    large.tofile(tmp_path / "train.bin")
    assert datasets.build(Tokens(root=str(tmp_path), context=64, vocabulary=65)).train.fingerprint() != before


def test_tokens_that_became_shorter_are_told(binary):
    train = datasets.build(Tokens(root=str(binary), context=10, vocabulary=65)).train
    os.truncate(binary / "train.bin", 500)
    with pytest.raises(UserError, match=r"train\.bin has become shorter"):
        train.__getitems__(np.array([90]))


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (
            b"short",
            {},
            r"the train split of .*texts has 4 tokens, and one window takes 17: set data\.context to 3 or less",
        ),
        (b"", {}, "has 0 tokens, and one"),
        (b"ab\xff" * 100, {"tokenizer": "chars"}, r"text\.txt is no UTF-8 \(byte 2\): .* data\.tokenizer to bytes"),
        (
            b"x" * 100,
            {"tokenizer": "byte"},
            r"data\.tokenizer is bytes, chars or a file: cannot read .*/byte: No such file",
        ),
        (b"x" * 100, {"tokenizer": "{root}"}, r"is no file of the library tokenizers \("),
        (b"x" * 100, {"eval": "other", "train": "text.txt"}, "other is neither a file nor a folder of text"),
        (b"x" * 100, {"pattern": "*.md"}, r"has no file \*\.md \(data\.pattern\) in it"),
        (b"x" * 100, {"cache_folder": "/proc/nowhere"}, "set data.cache_folder to a folder that can be written"),
    ],
)
def test_a_text_that_is_wrong_is_an_error_in_a_line(tmp_path, content, more, message):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/text.txt").write_bytes(content)
    more = {key: value.replace("{root}", str(tmp_path / "texts/text.txt")) for key, value in more.items()}
    with pytest.raises(UserError, match=message) as raised:
        datasets.build(config(tmp_path / "texts", **more))
    assert raised.value.code == ExitCode.DATA and "\n" not in str(raised.value)
    assert not [path for path in tmp_path.glob("cache/*") if path.name[0] == "."]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"vocabulary": 64}, r"train\.bin holds the token 64, and there are the tokens 0 to 63 \(data\.vocabulary\)"),
        ({"eval": "gone.bin"}, r"cannot read the tokens .*/gone\.bin: No such file"),
        ({"dtype": "uint32", "train": "odd.bin"}, r"odd\.bin has 6 bytes, which are no whole number of tokens of 4"),
        ({"context": 100}, r"val\.bin has 100 tokens, and one window takes 101"),
    ],
)
def test_tokens_that_are_wrong_are_an_error_in_a_line(binary, more, message):
    (binary / "odd.bin").write_bytes(bytes(6))
    with pytest.raises(UserError, match=message) as raised:
        datasets.build(Tokens(**{"root": str(binary), "context": 10, "vocabulary": 65, **more}))
    assert raised.value.code == ExitCode.DATA


def test_the_number_of_tokens_has_to_be_said(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {name: tokens, root: .}\nmodel: {name: mlp}\n")
    with pytest.raises(ConfigError, match=r"data\.vocabulary"):
        load(tmp_path / "c.yaml")


def test_files_of_a_folder_are_read_in_the_order_of_their_paths(tmp_path):
    for name in ("b.txt", "a/z.txt", "a.txt", ".hidden.txt", "c.md"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 10)
    train = datasets.build(config(tmp_path / "texts", context=1)).train
    found = train.decode(tokens_of(train))
    order = [found.index(name) for name in ("a/z.txt", "a.txt", "b.txt")]
    assert "hidden" not in found and ".md" not in found
    assert all(one < two for one, two in pairwise(order))
    index = json.loads(next((tmp_path / "cache").glob("*/tokens.json")).read_text())
    assert index == {"dtype": "<u2", "tokens": {"train": 10 * sum(map(len, ("b.txt", "a/z.txt", "a.txt")))},
                     "characters": ""}  # fmt: skip
