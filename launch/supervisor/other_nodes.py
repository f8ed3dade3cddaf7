"""What the supervisor asks about the other nodes. On a single one, and under a scheduler, nothing is asked."""

from dataclasses import dataclass

from dist_train.rundir.layout import GenerationDir

from ..plan import LaunchPlan


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """How a generation ended, as all nodes together know it.

    Attributes:
        code: the exit code.
        lost: the nodes whose launchers are gone.
    """

    code: int
    lost: tuple[str, ...] = ()


class NoOtherNodes:
    """One node, or those of a scheduler's job.

    Attributes:
        restarts: how many generations have failed, other than by the loss of a node.
        code: the exit code of the last generation, where this node knows why it ended.
        is_void: the generation is given up before it has begun.
    """

    def __init__(self, plan: LaunchPlan) -> None:
        self.plan = plan
        self.restarts, self.is_void = 0, False
        self.code: int | None = None

    def next_plan(self) -> LaunchPlan | None:
        """The plan of the next generation; None when a stop was asked for meanwhile.

        Raises:
            UserError: (exit 75) when another node stays away.
        """
        return self.plan.of_attempt(self.restarts + 1)

    def all_came(self, generation: GenerationDir) -> bool:
        """Whether every node has its place in the generation; waits for it."""
        return True

    def have_left(self, begun: bool) -> bool:
        """Whether another node has left the generation that runs, or never came.

        Args:
            begun: whether a rank of this node has begun.
        """
        return False

    def agree(self, code: int) -> Agreed:
        """What all nodes know of a generation that ended with `code`, where this one knows only that another was
        gone."""
        return Agreed(code=code)

    def leave(self, code: int) -> None:
        """Tells the other nodes that this launcher ends with this exit code."""
