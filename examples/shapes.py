"""Pictures of discs, squares and crosses, and a small U-Net, for configs/segmentation.yaml and multi_label.yaml."""

import numpy as np
import torch
from torch import Tensor, nn

SHAPES = ("disc", "square", "cross")


class Shapes(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Each picture is a function of its index alone.

    Args:
        split: "train" or "evaluation", given by the system; their pictures are different ones.
        target: "mask", for each pixel 0 or 1 + the number of the shape that it is of; or "labels", for each shape
            whether it is there.
        side: of a picture, in pixels.
        size, eval_size: pictures of the two splits.
    """

    def __init__(
        self, split: str, target: str = "mask", side: int = 32, size: int = 2_000, eval_size: int = 400
    ) -> None:
        self.classes = ("background", *SHAPES) if target == "mask" else SHAPES
        self._masks, self._side = target == "mask", side
        self._split_number, self._size = ("train", "evaluation").index(split), size if split == "train" else eval_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The picture, uint8 [3, side, side], and the mask, int64 [side, side], or the labels, int64 [3]."""
        draws = np.random.default_rng([self._split_number, index])
        side = self._side
        image = draws.integers(0, 60, (3, side, side))
        mask = np.zeros((side, side), dtype=np.int64)
        rows, columns = np.mgrid[:side, :side]
        for number in range(len(SHAPES)):
            if draws.random() < 0.4:
                continue
            size = draws.integers(side // 8, side // 4)
            down, across = (
                np.abs(rows - draws.integers(size, side - size)),
                np.abs(columns - draws.integers(size, side - size)),
            )
            inside = [
                down**2 + across**2 <= size**2,
                np.maximum(down, across) <= 0.8 * size,
                (np.minimum(down, across) <= size / 4) & (np.maximum(down, across) <= size),
            ][number]
            mask[inside] = 1 + number
            image[:, inside] = draws.integers(90, 250, 3)[:, None] + draws.integers(-20, 5, (3, inside.sum()))
        labels = np.array([(mask == 1 + number).any() for number in range(len(SHAPES))], dtype=np.int64)
        return torch.from_numpy(image.clip(0, 255).astype(np.uint8)), torch.from_numpy(mask if self._masks else labels)


class SmallUNet(nn.Module):
    """[m, 3, H, W] -> [m, classes, H, W], of three sizes (Ronneberger et al., U-Net, 2015); H and W divide by four."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = _block(3, width), _block(width, 2 * width)
        self.bottom = _block(2 * width, 4 * width)
        self.up2, self.up1 = _block(6 * width, 2 * width), _block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)
        self.pool, self.enlarge = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down1(images)
        middle = self.down2(self.pool(fine))
        coarse = self.bottom(self.pool(middle))
        middle = self.up2(torch.cat([middle, self.enlarge(coarse)], dim=1))
        return self.head(self.up1(torch.cat([fine, self.enlarge(middle)], dim=1)))


def _block(channels_in: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )
