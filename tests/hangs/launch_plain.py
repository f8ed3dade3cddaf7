"""Supervises plain.py: `launch_plain.py FOLDER RANKS HANG_TIMEOUT|- ACTION VICTIM`."""

import sys
from pathlib import Path

from dist_train.config.schema import RunConfig
from launch.commands.launch_flags import hang_timeout
from launch.plan import host, make_plan
from launch.plan.flags import Flags
from launch.supervisor import supervise


def main() -> None:
    folder, ranks, timeout, action, victim = sys.argv[1:]
    config = RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}})
    plan = make_plan(
        config,
        Flags(nproc_per_node=ranks, hang_timeout=hang_timeout(None if timeout == "-" else timeout)),
        host.look(),
        folder=Path(folder),
        program=(str(Path(__file__).with_name("plain.py")),),
        arguments=(action, folder, victim),
        resume=None,
    )
    sys.exit(supervise(plan))


if __name__ == "__main__":
    main()
