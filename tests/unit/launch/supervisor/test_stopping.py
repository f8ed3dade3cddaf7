"""How long a node's ranks may take to end, which is how long the other nodes wait for its verdict."""

from dataclasses import replace

from launch.supervisor.stopping import AFTER_FAILURE_S, ENDING_S, longest_end
from tests.unit.launch.supervisor.test_launch_log import plan


def test_a_failed_rank_and_then_the_others_may_each_take_what_one_may(tmp_path):
    training = plan(tmp_path, 0)
    script = replace(training, is_training=False)
    assert training.is_training
    patient = replace(script, flags=replace(script.flags, grace=300.0))
    assert longest_end(training) == 2 * AFTER_FAILURE_S, "a training's others die of the failed one: nothing to save"
    assert longest_end(script) == 2 * ENDING_S and longest_end(patient) == 600.0
