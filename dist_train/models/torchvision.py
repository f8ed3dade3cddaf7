"""The classifiers of torchvision.models. The only file here that imports torchvision, and only when one is built.

They are made for images of about 224×224 pixels: the residual networks, for one, see a 32×32 image as a single place
after the last stage, AlexNet refuses it, and Inception v3 wants 299×299. For small images take `resnet_cifar` or `cnn`,
or let the data enlarge the images.
"""

from typing import Any

from torch import nn

from dist_train.config.schema import TorchvisionModel
from dist_train.errors import UserError

_FETCHED = {"weights", "weights_backbone", "pretrained", "pretrained_backbone"}
"""Arguments that have weights fetched over the network."""


def build(config: TorchvisionModel, shape: tuple[int, ...], classes: int) -> nn.Module:
    """`torchvision.models.get_model(name, weights=None, num_classes=classes, **args)`: [m, 3, H, W] -> [m, classes].

    Transformers of a fixed image size (vit_*, maxvit_t) get the data's, where args have none. The second outputs that
    googlenet and inception_v3 have in training are off, so that the output is one tensor.

    Raises:
        UserError: when the model cannot be built with these arguments, or for such images.
    """
    from torchvision.models import get_model

    if fetched := _FETCHED & config.args.keys():
        names = ", ".join(sorted(fetched))
        raise UserError(f"model.args: {config.name} takes its weights from a file, not by {names}: model.start_weights")
    if shape[0] != 3:
        raise UserError(f"model: torchvision's {config.name} takes images of 3 channels, the data's have {shape[0]}")
    args = {**_defaults(config.name, shape), **config.args}
    try:
        return get_model(config.name, **{"weights": None, "num_classes": classes, **args})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"model: torchvision's {config.name} cannot be built with args {args}: {error}") from error


def _defaults(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    _, height, width = shape
    if name.startswith("vit_"):
        if height != width:
            raise UserError(f"model: {name} takes square images, the data's are {height}×{width}")
        return {"image_size": height}
    if name == "maxvit_t":
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}
