from __future__ import annotations

import pytest
import torch
from image_nets import random_pixels

from labkit.core.errors import ModelError
from labkit.models.resnet import ResNet


def test_the_seed_decides_the_weights_and_torchs_own_state_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = ResNet(1, 10), ResNet(1, 10), ResNet(1, 10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv.weight, same.conv.weight)
    assert not torch.equal(first.conv.weight, other.conv.weight)


def test_the_digits_net_has_the_size_that_the_lab_says():
    assert sum(p.numel() for p in ResNet(1, 10).parameters()) == 77_754


@pytest.mark.parametrize(
    ("channels", "size", "large", "last"), [(1, 8, False, 2), (3, 32, False, 8), (3, 224, True, 14)]
)
def test_one_net_for_digits_photographs_and_large_photographs(channels, size, large, last):
    net = ResNet(channels, 7, (4, 8, 8), large_images=large).eval()
    places: list[torch.Size] = []
    net.mean_stored.register_forward_hook(
        lambda module, inputs, output: places.append(output.shape)
    )
    assert net(random_pixels(2, channels, size)).shape == (2, 7)
    assert places == [torch.Size([2, 8, last, last])]


def test_more_blocks_are_more_layers():
    convolutions = [
        sum(isinstance(m, torch.nn.Conv2d) for m in ResNet(3, 10, blocks=n).modules())
        for n in (1, 3)
    ]
    assert convolutions == [9, 21]  # with 3 blocks, ResNet-20: 19 and two projections


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, (4,), 1), (0, 10, (4,), 1), (1, 10, (), 1), (1, 10, (4, 0), 1), (1, 10, (4,), 0)],
)
def test_sizes_that_make_no_net_are_refused(sizes):
    with pytest.raises(ModelError, match="ResNet"):
        ResNet(*sizes)
