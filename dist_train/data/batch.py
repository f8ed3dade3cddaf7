"""What the loader hands to the loop."""

from dataclasses import dataclass

from torch import Tensor

from dist_train.data.broken import Broken


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """The unit of one forward and backward.

    Attributes:
        step: the optimizer step it belongs to, from 0; in evaluation 0.
        number: which of the step's V microbatches it is, from 0; in evaluation the number of the batch.
        indices: int64 [m], the samples' places in their dataset; of those that were really read.
        inputs: [m, ...], on the rank's device, ready for the model.
        targets: int64 [m] classes, float32 [m, classes] after mixing, or whatever the user's dataset gives.
        broken: the samples that could not be read. An evaluation batch in which nothing else was has m = 0, and None
            for inputs and targets.
    """

    step: int
    number: int
    indices: Tensor
    inputs: Tensor
    targets: Tensor
    broken: tuple[Broken, ...] = ()
