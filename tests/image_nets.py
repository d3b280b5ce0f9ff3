"""Nets for images that several tests share: an untrained one with statistics, and a trained one."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from labkit.data.images import ImageData, load_images
from labkit.models.resnet import ResNet
from labkit.training.images import FLOAT, train_images
from labkit.training.static import calibrate, prepare_static


def random_pixels(count: int = 32, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    """Images of noise, 0 to 1, in whole 255ths as image files have them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator) / 255


def small_net(seed: int = 0) -> nn.Module:
    """Two stages, 4 and 8 channels, random weights; its batch norms have seen noise."""
    net = ResNet(1, 3, (4, 8), seed=seed)
    with torch.no_grad():
        net.train()(random_pixels(64, seed=seed + 1))
    return net.eval()


def calibrated(net: nn.Module, pixels: Tensor, *schemes) -> nn.Module:
    """The net prepared in these schemes, with min-max ranges."""
    prepared = prepare_static(net, *schemes)
    calibrate(prepared, [pixels])
    return prepared


@functools.cache
def _trained() -> tuple[nn.Module, ImageData]:
    data = load_images()
    net = ResNet(1, 10)
    train_images(net, data.train, replace(FLOAT, steps=60))
    return net, data


def digits_net() -> tuple[nn.Module, ImageData]:
    """The lab's net after 60 steps (over 90 % right), and the digits."""
    net, data = _trained()
    return copy.deepcopy(net), data
