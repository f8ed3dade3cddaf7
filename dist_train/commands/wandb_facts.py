"""`python -m dist_train.commands.wandb_facts MODE`: what W&B would do here, as JSON. For `dist-train doctor`.

Reports whether there are credentials without revealing them. Uses no network.
"""

import json
import sys

from dist_train.tracking.wandb import has_credentials
from dist_train.tracking.wandb_sink import wandb_mode


def main(argv: list[str]) -> int:
    mode = wandb_mode(argv[0])
    asked = mode in ("auto", "online")
    print(json.dumps({"mode": mode, "credentials": has_credentials() if asked else None}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
