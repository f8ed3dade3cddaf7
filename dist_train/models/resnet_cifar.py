"""Residual networks for 32×32 images (He, Zhang, Ren and Sun, Deep Residual Learning, 2015, section 4.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

from dist_train.config.schema import ResnetCifar


def build(config: ResnetCifar, shape: tuple[int, ...], classes: int) -> nn.Module:
    """[m, C, H, W] -> [m, classes]; a depth of 6n + 2 is 2n layers in each of three stages."""
    return ResNetCifar((config.depth - 2) // 6, config.width, shape[0], classes)


class ResNetCifar(nn.Module):
    """A 3×3 convolution, three stages of n blocks with 1, 2 and 4 times the width at whole, half and quarter size,
    averaging, one linear layer. With width 16 the paper's parameter counts: 0.27 M at depth 20 to 1.7 M at 110.
    """

    def __init__(self, n: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = _conv(channels, width)
        self.norm = nn.BatchNorm2d(width)
        self.stage1 = _stage(n, width, width, stride=1)
        self.stage2 = _stage(n, width, 2 * width, stride=2)
        self.stage3 = _stage(n, 2 * width, 4 * width, stride=2)
        self.head = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., Delving Deep into Rectifiers, 2015, equation 14
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (option A): where the shape changes, every second pixel
    is taken, and the new channels are zero.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(width_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _conv(width, width), nn.BatchNorm2d(width)
        self.stride, self.new_channels = stride, width - width_in

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def _stage(n: int, width_in: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(Residual(width_in, width, stride), *(Residual(width, width, 1) for _ in range(n - 1)))


def _conv(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
