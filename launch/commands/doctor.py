"""`dist-train doctor`."""

import json
import socket
import sys
from dataclasses import asdict

import click

from dist_train.config.stdout import tell

from .. import completion
from ..configs import existing_config, load_trusted, split_config
from ..console import mark, say
from .common import json_option, launch_command, trust_option


@launch_command()
@click.argument("words", nargs=-1, metavar="[CONFIG] [a.b=c]...", shell_complete=completion.words)
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks to start. auto: as a training would.")
@trust_option
@json_option("One JSON object on stdout.")
def command(words: tuple[str, ...], nproc_per_node: str | None, trust: bool, as_json: bool) -> None:
    """Would a training work here, and is every rank as fast as the others?

    Looks at this node: versions, GPUs and driver, cores, limits, network, the disk of the run directory against the
    size of CONFIG's checkpoints, W&B; then starts ranks that compute and talk for some seconds. Of several nodes, ask
    each: srun --ntasks-per-node=1 dist-train doctor. Exit code 0: it would work; 1: it would not.
    """
    from ..doctor.examine import examine, standard_config
    from ..doctor.ranks import Stopped

    config_path, overrides = split_config(words)
    config_path = existing_config(config_path) if words else None
    config = load_trusted(config_path, overrides, trust=trust) if config_path else standard_config()
    found = []
    try:
        for finding in examine(config, config_path, overrides, nproc_per_node):
            found.append(finding)
            if not as_json:
                finding.show()
    except Stopped as stopped:
        sys.exit(stopped.args[0])
    bad = sum(finding.level == "problem" for finding in found)
    if as_json:
        facts = {"ok": not bad, "host": socket.gethostname(), "findings": [asdict(finding) for finding in found]}
        tell(json.dumps(facts))
    elif bad:
        say(f"{mark('✗', 'red')} a training would not work here: {bad} problem{'s' * (bad > 1)} above")
    sys.exit(1 if bad else 0)
