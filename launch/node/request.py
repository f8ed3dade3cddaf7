"""What the supervisor asks of torch's elastic agent, and how the agent reads it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AgentRequest:
    """One generation on this node.

    Attributes:
        cwd: the folder that the user's command was given in.
        arguments: torchrun's flags.
        program: what a rank runs, `-m MODULE`, `--no-python PROGRAM` or a script, and its arguments.
        run_id: the launch's name, as the ranks are told it.
        generation: the folder that ranks leave their files in.
        logs: the folder of the ranks' logs.
        log: the file that torch's own words go to.
        signals: whether the program answers SIGTERM and the like itself (ours), or is to find Python's defaults.
        restarts: how often the ranks have been started again.
        max_restarts: how often they may be.
        output: address of the relay.
        pages: the memory file (rank/page.py): a page for each rank, and the last for the agent.
        ranks: how many ranks this node has.
        grace: seconds that ranks may take to end once one has failed.
        outcome: the file to write how the ranks ended, for people.
        stdin: descriptor of the standard input of the user's command.
    """

    cwd: str
    arguments: list[str]
    program: list[str]
    run_id: str
    generation: str
    logs: str
    log: str
    signals: Literal["ours", "default"]
    restarts: int
    max_restarts: int
    output: str
    pages: str
    ranks: int
    grace: float
    outcome: str
    stdin: int = 0
