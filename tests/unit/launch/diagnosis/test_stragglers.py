"""Which rank the others wait for (launch/diagnosis/stragglers.py)."""

from launch.diagnosis.evidence import Heartbeat
from launch.diagnosis.stragglers import EVERY, IN_A_ROW, STEPS, Stragglers


def hearts(*works: float, worked: int = 100, phase: str = "step") -> dict[int, Heartbeat]:
    return {rank: Heartbeat(work=work, worked=worked, phase=phase) for rank, work in enumerate(works)}


def watch(stragglers: Stragglers, ranks: dict[int, Heartbeat], looks: int, since: float = 0.0) -> list[str]:
    """What is said in that many looks."""
    return [line for number in range(looks) for line in stragglers.look(ranks, since + EVERY * (number + 1))]


def test_a_slow_rank_is_named_once_and_told_when_it_keeps_up_again():
    stragglers = Stragglers()
    said = watch(stragglers, hearts(0.2, 0.21, 0.2, 0.4), 20)
    assert said == [
        "rank 3 is slow: loading and the forward pass of a microbatch take it 400 ms, ranks 0-2 200 ms. "
        "They wait for it in every step"
    ]
    assert watch(stragglers, hearts(0.2, 0.21, 0.2, 0.27), 20, since=1000) == []  # neither the one nor the other
    assert watch(stragglers, hearts(0.2, 0.21, 0.2, 0.21), 20, since=2000) == ["rank 3 keeps up with the others again"]
    assert len(watch(stragglers, hearts(0.2, 0.21, 0.2, 0.4), 20, since=3000)) == 1


def test_of_two_ranks_the_slower_is_named():
    assert watch(Stragglers(), hearts(0.3, 0.1), IN_A_ROW)[0].startswith("rank 0 is slow: ")


def test_it_takes_several_looks_that_agree():
    stragglers = Stragglers()
    assert watch(stragglers, hearts(0.1, 0.3), IN_A_ROW - 1) == []
    assert watch(stragglers, hearts(0.1, 0.1), 1, since=100) == []
    assert watch(stragglers, hearts(0.1, 0.3), IN_A_ROW - 1, since=200) == []


def test_looks_are_far_apart():
    stragglers = Stragglers()
    assert [line for n in range(100) for line in stragglers.look(hearts(0.1, 0.3), EVERY * (1 + n / 1000))] == []


def test_nothing_is_said_without_cause():
    for ranks in (
        hearts(0.1, 0.12, 0.14),
        hearts(0.001, 0.004),  # little of anything
        hearts(0.1),
        {},
        hearts(0.1, 0.9, worked=STEPS - 1),
        hearts(0.1, 0.9, phase="evaluate"),
        {**hearts(0.1, 0.9), 2: Heartbeat()},  # one does not tell
    ):
        assert watch(Stragglers(), ranks, 20) == []
