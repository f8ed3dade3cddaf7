"""The models of torchvision. The only file here that imports torchvision, and only when one is built.

Classifiers are made for images of about 224×224 pixels: the residual networks, for one, see a 32×32 image as a single
place after the last stage, AlexNet refuses it, and Inception v3 wants 299×299. For small images take `resnet_cifar` or
`cnn`, or let the data enlarge the images.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import hub, nn

from dist_train.config.schema import TorchvisionModel
from dist_train.config.torchvision_names import SEGMENTS
from dist_train.errors import DataError, UserError

_FETCHED = {"weights", "weights_backbone", "pretrained", "pretrained_backbone"}
"""Arguments that have weights fetched over the network."""


def build(config: TorchvisionModel, shape: tuple[int, ...], classes: int) -> nn.Module:
    """`torchvision.models.get_model(name, weights=None, num_classes=classes, **args)`: [m, 3, H, W] -> [m, classes], or
    of a segmentation model {"out": [m, classes, H, W], and of fcn_* and deeplabv3_* "aux": the same}.

    Transformers of a fixed image size (vit_*, maxvit_t) get the data's, where args have none. The second outputs that
    googlenet and inception_v3 have in training are off, so that the output is one tensor.

    Raises:
        UserError: when the model cannot be built with these arguments, or for such images.
    """
    from torchvision.models import get_model

    if fetched := _FETCHED & config.args.keys():
        names = ", ".join(sorted(fetched))
        raise UserError(
            f"model.args: {config.name} takes no {names} here: say model.pretrained=true for torchvision's weights, "
            "or model.start_weights=FILE"
        )
    if shape[0] != 3:
        raise UserError(f"model: torchvision's {config.name} takes images of 3 channels, the data's have {shape[0]}")
    args = {**_defaults(config, shape), **config.args}
    try:
        model = get_model(config.name, **{"weights": None, "num_classes": classes, **args})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"model: torchvision's {config.name} cannot be built with args {args}: {error}") from error
    if config.name in SEGMENTS:
        model.base_model_prefix = "backbone"  # a classifier's weights can be loaded into it
    return model


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The weights that torchvision offers for a model, in torch hub's cache folder."""

    name: str
    """`ResNet18_Weights.IMAGENET1K_V1`."""
    url: str
    path: Path

    def fetch(self) -> None:
        """Downloads the file if it is not there.

        Raises:
            UserError: (exit 13) naming what to fetch and where to put it.
        """
        if self.path.exists():
            return
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30.0)  # torch sets none: a network that swallows packets would hang the run
        digest = self.path.stem.rpartition("-")[2]  # as torch.hub checks it: the first letters of the SHA-256
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            hub.download_url_to_file(self.url, str(self.path), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise DataError(
                f"model.pretrained: {self.path} is not there and could not be downloaded ({reason}): fetch {self.url} "
                "elsewhere and put it there, or set TORCH_HOME to the folder whose hub/checkpoints has it"
            ) from error
        finally:
            socket.setdefaulttimeout(before)


def pretrained(name: str) -> Pretrained:
    """Of the model's best weights in torchvision's own judgement, its DEFAULT.

    Raises:
        UserError: when torchvision has none.
    """
    from torchvision.models import get_model_weights

    weights = getattr(get_model_weights(name), "DEFAULT", None)
    if weights is None:
        raise UserError(f"model.pretrained: torchvision has no weights for {name}")
    path = Path(os.path.join(hub.get_dir(), "checkpoints", os.path.basename(weights.url)))
    return Pretrained(name=str(weights), url=weights.url, path=path)


def _defaults(config: TorchvisionModel, shape: tuple[int, ...]) -> dict[str, Any]:
    name, (_, height, width) = config.name, shape
    if name in SEGMENTS:
        second = {} if name.startswith("lraspp") else {"aux_loss": True}  # as torchvision's own recipes train them
        return {"weights_backbone": None, **second}
    if name.startswith("vit_"):
        if height != width:
            raise UserError(f"model: {name} takes square images, the data's are {height}×{width}")
        return {"image_size": height}
    if name == "maxvit_t":
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        # As torchvision does: the weights are of inputs that were scaled in another way.
        return {"aux_logits": False, "init_weights": True, "transform_input": config.pretrained}
    return {}
