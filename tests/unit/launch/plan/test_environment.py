"""What ranks find in their environment: the user's variables, before any of ours."""

import pytest

from dist_train.errors import UserError
from launch.plan.environment import environment
from launch.plan.host import Host, look
from launch.plan.requirements import Requirements


def of(variables=(), *, gpus=0, nodes=1, device="cpu", **requirements):
    host = Host(name="here", cores=4, gpus=gpus, place=None, variables=dict(variables))
    return environment(Requirements(**requirements), nodes, device, 2, host)


TRAINING = {"gpus": 2, "device": "gpu", "exact": True}


@pytest.mark.parametrize("name", sorted(of(**TRAINING).keys() - {"DIST_TRAIN_GPUS"}))
def test_a_variable_of_the_users_is_left_alone(name):
    value = ":16:8" if name == "CUBLAS_WORKSPACE_CONFIG" else "0"
    assert name not in of({name: value}, **TRAINING)


def test_a_program_of_others_gets_torchruns_environment_and_two_values_of_ours():
    ours = {"OMP_NUM_THREADS": "2", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3"}
    for device in ("cpu", "gpu"):
        assert of(gpus=2, device=device, environment_wins=True) == ours
        assert of({name: "0" for name in ours}, gpus=2, device=device, environment_wins=True) == {}
    assert of()["GLOO_SOCKET_IFNAME"] == of()["NCCL_SOCKET_IFNAME"] == "lo", "a training reaches no other host"


def test_what_was_decided_is_no_default():
    assert of({"CUDA_VISIBLE_DEVICES": "0,1"}, gpus=2)["CUDA_VISIBLE_DEVICES"] == ""
    assert of(gpus=2, device="gpu")["DIST_TRAIN_GPUS"] == "2"
    assert "DIST_TRAIN_GPUS" not in of(gpus=2)


def test_a_failed_collective_ends_a_rank_without_aborting_first():
    assert of()["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "3"


def test_a_workspace_that_is_not_deterministic_is_refused_before_anything_starts():
    variables = {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}
    with pytest.raises(UserError, match="':0:0' in the environment, and exact needs :4096:8 or :16:8"):
        of(variables, gpus=1, device="gpu", exact=True)
    of(variables, gpus=1, device="gpu")
    of(variables, exact=True)


def test_a_host_knows_the_variables_of_libraries_and_no_others():
    given = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3", "WANDB_API_KEY": "secret", "PATH": "/bin"}
    assert look(given).variables == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3"}
