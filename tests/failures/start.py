"""`start.py FOLDER INTERVAL WAY RANK`: four ranks of script.py under the supervisor; the verdict ends stdout."""

import json
import sys
from pathlib import Path

from dist_train.config.schema import RunConfig
from launch.diagnosis.verdict import latest
from launch.plan import host, make_plan
from launch.plan.flags import Flags
from launch.supervisor import supervise


def main() -> None:
    folder, interval, way, rank = sys.argv[1:]
    config = RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}})
    plan = make_plan(
        config,
        Flags(nproc_per_node="4", monitor_interval=float(interval)),
        host.look(),
        folder=Path(folder) / "run",
        program=(str(Path(__file__).with_name("script.py")),),
        arguments=(way, rank, folder),
        resume=None,
    )
    code = supervise(plan)
    print(json.dumps(latest(plan.folder)))
    sys.exit(code)


if __name__ == "__main__":
    main()
