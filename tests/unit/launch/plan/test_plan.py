"""The plan as a pure function of config, flags and host."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from launch.job import Place
from launch.plan import LaunchPlan, make_plan
from launch.plan.flags import Flags
from launch.plan.host import Host
from launch.plan.requirements import Requirements

SLURM = Place(scheduler="slurm", job="4711", job_number=4711, nodes=2, node=1, head="gpu07", restarts=3, cpus=None)

SYNCHRONISED = {"name": "cnn", "sync_batchnorm": True}


def config(**sections: Any) -> RunConfig:
    batch = {"microbatches": 8, "global_size": 64}
    return RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}, "batch": batch, **sections})


def plan(
    *, cores: int = 4, gpus: int = 0, slurm: Place | None = None, given: RunConfig | None = None, **flags: Any
) -> LaunchPlan:
    host = Host(name="here", cores=cores, gpus=gpus, place=slurm)
    arguments = ("c.yaml", "a.b=c", "--run-dir", "runs/x")
    return make_plan(
        given or config(),
        Flags(**flags),
        host,
        folder=Path("runs/x"),
        program=("-m", "dist_train"),
        arguments=arguments,
        resume="none",
    )


@pytest.mark.parametrize(
    ("cores", "gpus", "asked", "ranks", "backend"),
    [
        (4, 0, None, 4, "gloo"),
        (64, 0, None, 8, "gloo"),  # no more than microbatches
        (4, 2, None, 2, "nccl"),
        (4, 2, "gpu", 2, "nccl"),
        (4, 2, "cpu", 4, "gloo"),
        (4, 2, "1", 1, "nccl"),
        (2, 0, "5", 5, "gloo"),
    ],
)
def test_ranks_and_backend(cores, gpus, asked, ranks, backend):
    made = plan(cores=cores, gpus=gpus, nproc_per_node=asked)
    assert (made.ranks_per_node, made.backend, made.world_size) == (ranks, backend, ranks)


def test_a_program_of_others_may_have_more_ranks_than_there_are_gpus():
    host, more = Host(name="here", cores=4, gpus=1, place=None), {"folder": Path("x"), "program": ("x.py",)}
    made = make_plan(Requirements(environment_wins=True), Flags(nproc_per_node="2"), host, arguments=(), **more)
    assert (made.device, made.ranks_per_node) == ("gpu", 2)


def test_microbatches_fit_is_at_least_what_every_rank_needs():
    batch = {"global_size": 64, "microbatches": "fit"}
    assert plan(given=config(batch=batch), nproc_per_node="4").microbatches == 4
    assert plan(given=config(batch=batch), nproc_per_node="3").microbatches == 4, "it has no choice that is even"
    with pytest.raises(UserError, match="does not divide into 65 microbatches"):
        plan(given=config(batch=batch), nproc_per_node="65")


def test_microbatches_auto_is_the_world_size():
    assert plan(given=config(batch={"global_size": 64}), nproc_per_node="4").microbatches == 4


def test_threads_are_chosen_and_never_torchruns_silent_one():
    cpu = plan(given=config(distributed={"threads_per_rank": 2}))
    assert cpu.threads_per_rank == 2 and cpu.environment["OMP_NUM_THREADS"] == "2"
    assert plan(cores=32, gpus=4).environment["OMP_NUM_THREADS"] == "8"


def test_threads_that_the_user_set_are_those_of_the_plan():
    def planned(**sections):
        host = Host(name="here", cores=8, gpus=0, place=None, variables={"OMP_NUM_THREADS": "3"})
        more = {"folder": Path("x"), "program": ("x.py",), "arguments": (), "resume": None}
        return make_plan(Requirements(**sections), Flags(nproc_per_node="2"), host, **more)

    assert planned().threads_per_rank == 3 and "OMP_NUM_THREADS" not in planned().environment
    assert planned(threads=2).threads_per_rank == 2  # a training's, which torch is told


def test_a_cpu_run_on_a_gpu_machine_hides_the_gpus():
    assert plan(gpus=2, nproc_per_node="cpu").environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in plan(gpus=2).environment


def test_exact_on_a_gpu_fixes_the_workspace():
    assert plan(gpus=1).environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in plan(gpus=1, given=config(exact=False)).environment


@pytest.mark.parametrize(
    ("sections", "needs"),
    [
        ({}, False),
        ({"data": {"name": "image_folder", "root": "images", "eval_fraction": 0.1}, "model": {"name": "cnn"}}, False),
        ({"data": {"name": "cifar10"}, "model": {"name": "cnn"}}, True),
        ({"model": {"name": "resnet18"}}, True),
        ({"model": {"name": "cnn"}, "augment": [{"name": "rand_augment"}]}, True),
    ],
)
def test_torchvision_is_imported_before_the_ranks_where_they_need_it(sections, needs):
    assert ("torchvision" in Requirements.of(config(**sections)).preload) is needs


def test_the_equivalent_torchrun_command_of_one_node():
    assert plan(nproc_per_node="2").command == (
        "torchrun --nproc-per-node 2 --standalone --max-restarts 0 --monitor-interval 0.1 "
        "-m dist_train c.yaml a.b=c --run-dir runs/x --resume none"
    )


def test_slurm_gives_nodes_head_and_port():
    made = plan(slurm=SLURM, nproc_per_node="2")
    assert (made.nodes, made.node, made.world_size, made.place) == (2, 1, 4, SLURM)
    meet = made.rendezvous
    assert (meet.rdzv_backend, meet.master_addr, meet.rdzv_id) == ("static", "gpu07", "4711-3")
    assert meet.master_port is not None and 10_000 <= meet.master_port < 30_000
    assert "GLOO_SOCKET_IFNAME" not in made.environment


def test_flags_beat_slurm():
    made = plan(slurm=SLURM, nproc_per_node="2", nnodes="1")
    assert (made.nodes, made.node, made.world_size) == (1, 0, 2)
    assert plan(slurm=SLURM, nproc_per_node="2", standalone=True).nodes == 1
    named = plan(slurm=SLURM, nproc_per_node="2", master_addr="other", master_port=1234, node_rank=0)
    assert (named.node, named.rendezvous.master_addr, named.rendezvous.master_port) == (0, "other", 1234)


def test_an_endpoint_means_c10d():
    made = plan(nproc_per_node="2", nnodes="2", rdzv_endpoint="head:1234", rdzv_id="x")
    assert made.node is None
    words = made.torchrun_arguments
    assert words[words.index("--rdzv-backend") :][:2] == ("--rdzv-backend", "c10d")
    assert "--node-rank" not in words


def test_each_generation_meets_elsewhere_and_goes_on():
    made = plan(slurm=SLURM, nproc_per_node="2")
    later = made.of_attempt(3)
    assert made.of_attempt(1) is made
    assert later.resume == "auto" and later.rendezvous.rdzv_id == "4711-3-3"
    assert made.run_id == later.run_id == "4711-3", "what ranks are told that the launch is called"
    assert later.rendezvous.master_port == made.rendezvous.master_port + 2
    assert replace(made, resume="old/checkpoints/step-00000010").of_attempt(3).resume == "old/checkpoints/step-00000010"


def test_torchruns_own_parser_reads_what_it_is_handed():
    run = pytest.importorskip("torch.distributed.run")
    for made in (plan(nproc_per_node="2"), plan(slurm=SLURM, nproc_per_node="2"), plan(master_port=1234)):
        parsed = run.parse_args([*made.torchrun_arguments, *made.words])
        assert parsed.module and parsed.training_script == "dist_train"
        assert parsed.training_script_args == [*made.arguments, "--resume", "none"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nproc_per_node": "9"}, "9 ranks need at least as many microbatches"),
        ({"nproc_per_node": "gpu"}, "no GPU here"),
        ({"nproc_per_node": "some"}, "give a number, auto, gpu or cpu"),
        ({"nproc_per_node": "0"}, "at least one rank"),
        ({"nproc_per_node": "4", "gpus": 2}, "2 GPUs here"),
        ({"nnodes": "1:4"}, "give one number"),
        ({"nnodes": "zero"}, "not a number of nodes"),
        ({"nnodes": "2", "nproc_per_node": "2"}, "have to find each other"),
        ({"nnodes": "2", "nproc_per_node": "2", "node_rank": 2, "master_addr": "h"}, "--node-rank 2"),
        ({"nnodes": "2", "standalone": True}, "--standalone is for one node"),
        ({"nnodes": "2", "rdzv_endpoint": "h", "rdzv_conf": "join_timeout=soon"}, "join_timeout=soon: not a whole"),
        ({"given": config(distributed={"backend": "nccl"})}, "needs GPUs, and there is none here"),
        ({"given": config(batch={"global_size": 64}), "nproc_per_node": "3"}, "does not divide into 3 microbatches"),
        ({"given": config(exact=False, model=SYNCHRONISED), "gpus": 3}, "8 do not divide among 3 ranks"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(UserError, match=words) as refused:
        plan(**options)
    assert refused.value.code == 2 and "\n" not in str(refused.value)


def test_what_is_shown_is_said_once_and_checked_before_anything_starts():
    assert plan(nproc_per_node="4").shown.ranks is None
    made = plan(nproc_per_node="4", ranks="1,3", log_size="2MB")
    assert made.shown.ranks == [1, 3] and made.log_size == 2_000_000
    both = ({"ranks": "1", other: "3"} for other in ("tee", "redirects", "local_ranks_filter"))
    for wrong in (*both, {"ranks": "4"}, {"tee": "x"}, {"log_size": "0"}):
        with pytest.raises(UserError):
            plan(nproc_per_node="4", **wrong)
