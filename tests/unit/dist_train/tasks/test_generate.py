"""Generated tokens: the likeliest, or drawn by their probabilities, from the newest tokens alone."""

import pytest
import torch
from torch import Tensor

from dist_train.errors import ExitCode, UserError
from dist_train.randomness import key
from dist_train.tasks.generate import generate

TABLE = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 3.0], [0.5, 0.5, 0.0]])


def bigram(tokens: Tensor) -> Tensor:
    return TABLE[tokens]


def going_on(first: int, length: int, temperature: float, number: int = 0, context: int = 4) -> list[int]:
    found = generate(
        bigram, torch.tensor([[first]]), length, context=context, temperature=temperature, key=key(number, "text")
    )
    assert found.shape == (1, length) and found.dtype == torch.int64
    return found[0].tolist()


def test_without_a_temperature_it_is_the_likeliest_and_of_equals_the_first():
    assert going_on(0, 5, 0.0) == [1, 2, 0, 1, 2]
    assert going_on(0, 0, 0.0) == []


def test_draws_follow_the_probabilities_and_are_the_same_again():
    found = going_on(0, 6000, 0.7)
    assert found == going_on(0, 6000, 0.7) and found != going_on(0, 6000, 0.7, number=1)
    pairs = torch.zeros(3, 3, dtype=torch.float64)
    for before, after in zip(found[:-1], found[1:], strict=True):
        pairs[before, after] += 1
    expected = (TABLE.double() / 0.7).softmax(1)
    assert (pairs / pairs.sum(1, keepdim=True) - expected).abs().max() < 0.05  # about 4 deviations


def test_a_longer_text_begins_as_a_shorter_one():
    assert going_on(0, 40, 1.0)[:15] == going_on(0, 15, 1.0)


def test_the_model_sees_the_newest_tokens_of_its_context():
    seen: list[list[int]] = []

    def model(tokens: Tensor) -> Tensor:
        seen.append(tokens[0].tolist())
        return bigram(tokens)

    generate(model, torch.tensor([[2, 1, 0]]), 3, context=2, temperature=0.0, key=0)
    assert seen == [[1, 0], [0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("output", "code"),
    [(torch.zeros(1, 3), ExitCode.USER_CODE), (torch.full((1, 1, 3), torch.nan), ExitCode.NON_FINITE)],
    ids=["shape", "nan"],
)
def test_a_model_without_such_scores_is_named(output, code):
    with pytest.raises(UserError) as raised:
        generate(lambda tokens: output, torch.tensor([[0]]), 1, context=1, temperature=0.0, key=0)
    assert raised.value.code == code and "\n" not in str(raised.value)
