"""`python -m dist_train.commands.wandb_facts MODE`: what W&B would do here, as JSON. For `dist-train doctor`.

Reports whether there are credentials without revealing them. Uses no network.
"""

import sys

from dist_train.config.replies import WandbFacts
from dist_train.tracking.wandb import has_credentials
from dist_train.tracking.wandb_sink import wandb_mode

if __name__ == "__main__":
    mode = wandb_mode(sys.argv[1])
    WandbFacts(mode=mode, credentials=has_credentials() if mode in ("auto", "online") else None).send()
