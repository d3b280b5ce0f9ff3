"""A residual net for images, small enough to be trained in seconds and large enough to be real.

    stem: conv, norm, relu        then for each width one or more residual blocks
    block: conv, norm, relu, conv, norm, added to what came in, relu
    head: the mean over all places, and a linear layer

Every convolution stands right before its batch norm, as `labkit.training.prepare` expects it. The
same code takes 8 x 8 digits, 32 x 32 photographs (CIFAR-10) and 224 x 224 ones (ImageNet).
Source: He et al. 2016, "Deep Residual Learning for Image Recognition", sections 3.3 and 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from labkit.core.errors import ModelError


class Stored(nn.Identity):
    """A place where a quantized net holds the tensor as integers, though no layer reads it there.

    Convolutions round what they read. A sum of two branches reads tensors as well: without this it
    would add floats, and a net of integers would have to keep them.
    """


class ResidualBlock(nn.Module):
    """y = relu(branch(x) + shortcut(x)); [n, inputs, h, w] to [n, width, h / stride, w / stride].

    The shortcut is x itself, or a 1 x 1 convolution where the shape changes.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.branch_sum = Stored()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            projection = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
        self.shortcut_sum = Stored()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.norm1(self.conv1(x)))
        branch = self.norm2(self.conv2(branch))
        return self.relu(self.branch_sum(branch) + self.shortcut_sum(self.shortcut(x)))


class ResNet(nn.Module):
    """Logits [n, classes] of images [n, channels, height, width].

    Args:
        channels: 1 for grey, 3 for colour.
        classes: at least 2.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: residual blocks in a stage. ResNet-20 of the paper is widths (16, 32, 64), 3 blocks;
            ResNet-18 is (64, 128, 256, 512), 2 blocks, with `large_images`.
        large_images: start with a 7 x 7 convolution and a pooling that divide the size by four.
        seed: of the weights; torch's own random state is left as it was.

    Raises:
        ModelError: sizes that make no net.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        *,
        large_images: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if classes < 2 or min((channels, blocks, *widths), default=0) < 1 or not widths:
            raise ModelError(
                f"{channels} channels, {classes} classes, widths {tuple(widths)}, {blocks} blocks",
                where="ResNet",
                remedy="Give at least two classes, and one of everything else.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            size = 7 if large_images else 3
            stride = 2 if large_images else 1
            self.conv = nn.Conv2d(channels, widths[0], size, stride, size // 2, bias=False)
            self.norm = nn.BatchNorm2d(widths[0])
            self.relu = nn.ReLU()
            self.pool = nn.MaxPool2d(3, 2, padding=1) if large_images else nn.Identity()
            self.stages = nn.Sequential(*_stages(widths, blocks))
            self.mean_stored = Stored()
            self.mean = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(widths[-1], classes)
            _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """float [n, channels, height, width] to logits [n, classes]."""
        x = self.pool(self.relu(self.norm(self.conv(x))))
        x = self.mean(self.mean_stored(self.stages(x)))
        return self.head(x.flatten(1))


def _stages(widths: Sequence[int], blocks: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            found.append(ResidualBlock(inputs, width, stride))
            inputs = width
    return found


def _initialize(model: nn.Module) -> None:
    """Variance 2 / fan_out for convolutions before a relu (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
