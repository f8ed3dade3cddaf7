"""What is known of the metrics by their names, for whoever ranks or shows them."""

import re

SHARES = {"mean_average_precision": "mAP", "mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}
SHARES |= {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "top5": "top-5"}
"""Metrics between 0 and 1 that are shown in percent, in this order."""
BESIDE_SHARES = {"perplexity": "perplexity", "bits_per_byte": "bits/byte"}
"""Others that have a place in the line of an evaluation that has shares."""
_LOWER_IS_BETTER = re.compile(
    "error|loss(?!less)|(?<![a-z])(perplexity|ppl|bits|bp[bcd]|nll|ece|[wc]er|cross_?entropy|s?ma[ps]?e|r?msl?e)(?![a-z])"
)
KEPT = {"loss": 60, "f1": 42, "top5": 20}
"""How important these are in the line of an evaluation; others by their place."""


def lower_is_better(metric: str) -> bool:
    """Whether a metric's name is that of a loss, an error, a perplexity or bits. `neg_mean_squared_error` and its like
    are scikit-learn's names of what is higher where it is better."""
    return _LOWER_IS_BETTER.search(metric.lower()) is not None and not metric.lower().startswith(("neg_", "negative_"))
