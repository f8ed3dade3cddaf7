"""Plans and supervises a script as a command would: `launch_script.py FOLDER FLAGS_AS_JSON SCRIPT [ARGUMENT …]`."""

import json
import sys
from pathlib import Path

from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from launch.plan import host, make_plan
from launch.plan.flags import Flags
from launch.supervisor import supervise


def main() -> None:
    folder, flags, script, *arguments = sys.argv[1:]
    plan = make_plan(
        RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}}),
        Flags(**json.loads(flags)),
        host.look(),
        folder=Path(folder),
        program=(script,),
        arguments=tuple(arguments),
        resume=None,
    )
    try:
        sys.exit(supervise(plan))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
