"""Plans and supervises `ranks.py` as the CLI would:

`launch_ranks.py FOLDER RANKS MAX_RESTARTS GRACE ACTION [ARGUMENT …]`; GRACE 0 is none.
"""

import sys
from pathlib import Path

from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from launch.plan import host, make_plan
from launch.plan.flags import Flags
from launch.supervisor import supervise

PROGRAM = Path(__file__).with_name("ranks.py")


def main() -> None:
    folder, ranks, restarts, grace, action, *more = sys.argv[1:]
    config = RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}})
    config = config.model_copy(update={"batch": config.batch.model_copy(update={"global_size": 60})})
    plan = make_plan(
        config,
        Flags(nproc_per_node=ranks, max_restarts=int(restarts), grace=float(grace) or None),
        host.look(),
        folder=Path(folder),
        program=(str(PROGRAM),),
        arguments=(action, folder, *more),
        resume="none",
    )
    try:
        sys.exit(supervise(plan))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
