"""What the loader hands to the loop."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """The unit of one forward and backward.

    Attributes:
        step: the optimizer step it belongs to, from 0; in evaluation 0.
        number: which of the step's V microbatches it is, from 0; in evaluation the number of the batch.
        indices: int64 [m], the samples' places in their dataset.
        inputs: [m, ...], on the rank's device, ready for the model.
        targets: int64 [m] classes, float32 [m, classes] after mixing, or whatever the user's dataset gives.
    """

    step: int
    number: int
    indices: Tensor
    inputs: Tensor
    targets: Tensor
