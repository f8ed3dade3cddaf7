"""What is known of the metrics by their names, for whoever ranks or shows them."""

SHARES = {"mean_average_precision": "mAP", "mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}
SHARES |= {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "top5": "top-5"}
"""Metrics between 0 and 1 that are shown in percent, in this order."""
BESIDE_SHARES = {"perplexity": "perplexity", "bits_per_byte": "bits/byte"}
"""Others that have a place in the line of an evaluation that has shares."""
LOWER_IS_BETTER = ("loss", "mae", "rmse", "perplexity", "bits_per_byte")
"""And what ends with `loss`."""
KEPT = {"loss": 60, "f1": 42, "top5": 20}
"""How important these are in the line of an evaluation; others by their place."""
