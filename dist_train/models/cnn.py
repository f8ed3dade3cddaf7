"""A small convolutional network, for images of 8×8 to 64×64 pixels."""

from collections import OrderedDict

from torch import nn

from dist_train.config.schema import Cnn


def build(config: Cnn, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Three 3×3 convolutions with BatchNorm and ReLU, halved in size after the first two, averaged, one linear layer.

    [m, C, H, W] -> [m, classes], for any number of channels and any size: 8×8 is averaged over 2×2 places, 32×32 over
    8×8. 0.1 M parameters at width 32.
    """
    width = config.width
    layers = OrderedDict(
        block1=_block(shape[0], width),
        pool1=_half(),
        block2=_block(width, 2 * width),
        pool2=_half(),
        block3=_block(2 * width, 4 * width),
        average=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(config.dropout),
        head=nn.Linear(4 * width, classes),
    )
    return nn.Sequential(layers)


def _block(channels: int, width: int) -> nn.Module:
    # BatchNorm subtracts the mean, so a bias of the convolution would do nothing.
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _half() -> nn.Module:
    return nn.MaxPool2d(2, ceil_mode=True)  # rounded up, so that a side of one pixel stays one pixel
