"""The order of the checks: all of them for `dist-train doctor`, the quick ones for `train --preflight`."""

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.config.replies import Description, TorchFacts
from dist_train.errors import UserError
from dist_train.rundir.layout import RunDir
from dist_train.rundir.runs import newest_checkpoint

from ..plan import LaunchPlan, host, make_plan
from ..plan.dry_run import ask_description
from ..plan.flags import Flags
from ..scheduler import NAME, without_job
from . import disk, gpu, machine, network, ranks, software
from .finding import Finding, problem

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig


def examine(
    config: "RunConfig", config_path: str | None, overrides: Sequence[str], nproc_per_node: str | None
) -> Iterator[Finding]:
    """Yields every finding as it comes. Ranks are started last, unless torch or the plan has failed already.

    Args:
        config_path: the config's file, where there is one; `overrides` are what was changed in it.

    Raises:
        ranks.Stopped: when a signal ended the ranks.
    """
    try:
        here = host.look(os.environ)
    except UserError as error:
        here = host.look(without_job(os.environ))
        yield problem(NAME.upper(), str(error))
    torch = software.ask_torch()
    works = software.check_versions(torch)
    yield works
    if works.level == "problem":
        torch = TorchFacts()
    else:
        yield software.devices(torch, visible=here.gpus)
        yield gpu.check_driver(torch, driver=gpu.driver_version(), cards=gpu.cards(), gpus=here.gpus)
        yield software.backends(torch)
    try:
        # If torch sees no GPU, ranks run on the CPU, so that the rest can still be examined.
        gpus = min(here.gpus, len(torch.gpus))
        usable = host.Host(name=here.name, cores=here.cores, gpus=gpus, place=None)
        flags = Flags(nproc_per_node=nproc_per_node, standalone=True)
        plan = make_plan(config, flags, usable, folder=Path("unused"), program=(), arguments=(), resume=None)
    except UserError as error:
        plan = None
        yield problem("plan", str(error))
    yield from _machine(config, plan, here)
    yield network.port()
    yield network.own_name()
    root = Path(config.run_root)
    found = disk.run_directory(root)
    yield from found
    if found[0].level != "problem":
        facts = ask_description(config, config_path, overrides) if config_path else Description()
        yield disk.room(root, each=facts.state_bytes, kept=config.checkpoint.keep + 1)
        if facts.cache:
            yield disk.images(facts.cache)
    yield software.tracking(config)
    if plan is not None and works.level != "problem":
        yield from ranks.findings(plan, cores=here.cores)


def _machine(config: "RunConfig", plan: LaunchPlan | None, here: host.Host) -> Iterator[Finding]:
    count = plan.ranks_per_node if plan else 1
    yield machine.cores(here, ranks=count, threads=plan.threads_per_rank if plan else 1)
    on_cpu = plan is None or plan.device == "cpu"
    yield machine.cpu(computes=on_cpu, precision=config.train.precision)
    yield machine.numa()
    backend = plan.backend if plan else "gloo"
    yield machine.open_files_limit(world_size=count, backend=backend, workers=_known_workers(config))
    yield disk.shared_memory(workers=config.loader.workers != 0, nccl=_uses_nccl(plan))


def _known_workers(config: "RunConfig") -> int:
    """Loading processes of a rank; 0 for `auto`, which depends on the data."""
    return config.loader.workers if isinstance(config.loader.workers, int) else 0


def _uses_nccl(plan: LaunchPlan | None) -> bool:
    return plan is not None and plan.backend == "nccl" and plan.ranks_per_node > 1


# ---------------------------------------------------------------- before a training


def preflight(config: "RunConfig", plan: LaunchPlan) -> None:
    """Runs the quick checks of this node and this plan. Silent when all is well.

    Raises:
        UserError: when the training could not work, with the first problem and what to do about it.
    """
    for finding in _quick(config, plan):
        if finding.level == "problem":
            raise UserError(f"preflight on {socket.gethostname()}: {finding}")


def _quick(config: "RunConfig", plan: LaunchPlan) -> Iterator[Finding]:
    workers = _known_workers(config)
    yield machine.open_files_limit(world_size=plan.world_size, backend=plan.backend, workers=workers)
    yield disk.shared_memory(workers=workers > 0, nccl=_uses_nccl(plan))
    yield network.port(plan)
    yield from [head] if (head := network.head_name(plan)) else []
    if plan.device == "gpu":
        # Checks NVIDIA's table; if that refuses the driver, asks torch itself, since a cuda-compat package may help.
        driver, cuda = gpu.driver_version(), gpu.cuda_of_torch()
        unsure = cuda is None or gpu.is_too_old(driver, cuda)
        if unsure and not (torch := software.ask_torch()).problem:
            yield gpu.check_driver(torch, driver=driver, cards=gpu.cards(), gpus=plan.ranks_per_node)
    yield from disk.run_directory(plan.folder)
    newest = newest_checkpoint(plan.folder)  # the next one will be about as large
    each = disk.checkpoint_bytes(RunDir(plan.folder).checkpoints / newest) if newest else None
    yield disk.room(plan.folder, each=each, kept=config.checkpoint.keep + 1)


def standard_config() -> "RunConfig":
    """What is examined without a config: a training with all defaults."""
    from dist_train.config.schema import RunConfig

    return RunConfig.model_validate(
        {"data": {"name": "synthetic"}, "model": {"name": "cnn"}, "optimizer": {"name": "sgd", "lr": 0.1}}
    )
