from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from image_nets import digits_net, random_pixels

from labkit.core.errors import CorpusError
from labkit.data.images import in_memory
from labkit.evaluate.images import accuracy
from labkit.models.resnet import ResNet
from labkit.training.images import FLOAT, image_batches, train_images

PIXELS = random_pixels(20)
IMAGES = in_memory("noise", PIXELS, torch.arange(20) % 2, ("even", "odd"))


def keys(pixels):
    return sorted(row.numpy().tobytes() for row in pixels)


def test_an_epoch_shows_each_image_once_and_the_next_in_another_order():
    batch = image_batches(IMAGES, 5)
    epochs = [torch.cat([batch(epoch * 4 + n)[0] for n in range(4)]) for epoch in range(2)]
    assert keys(epochs[0]) == keys(epochs[1]) == keys(PIXELS)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_is_a_function_of_step_and_seed_alone():
    first, again = (image_batches(IMAGES, 8, 3, shift=1, flip=True) for _ in range(2))
    first(0)
    for found, wanted in zip(first(7), again(7), strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(first(7)[0], image_batches(IMAGES, 8, 4, shift=1, flip=True)(7)[0])


def test_images_move_by_a_pixel_at_most_and_keep_their_labels():
    dots = torch.zeros(9, 1, 5, 5)
    dots[:, 0, 2, 2] = torch.arange(1, 10) / 10
    images = in_memory("dots", dots, torch.arange(9), tuple("abcdefghi"))
    offsets = set()
    for step in range(20):
        pixels, labels = image_batches(images, 9, shift=1)(step)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            (place,) = image[0].nonzero().tolist()
            assert float(image[0, place[0], place[1]]) == pytest.approx((label + 1) / 10)
            offsets.add((place[0] - 2, place[1] - 2))
    assert offsets == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


def test_a_flip_mirrors_some_images_and_leaves_the_others():
    pixels, _ = image_batches(IMAGES, 20, flip=True)(0)
    plain, _ = image_batches(IMAGES, 20)(0)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(pixels, plain, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(pixels, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 20


def test_one_class_is_refused_before_any_training():
    net = ResNet(1, 2, (4,))
    before = net.conv.weight.clone()
    one = in_memory("ones", PIXELS, torch.ones(20, dtype=torch.int64), ("even", "odd"))
    with pytest.raises(CorpusError, match="all 20 labels are 1"):
        train_images(net, one)
    assert torch.equal(net.conv.weight, before)


def test_sixty_steps_teach_the_digits():
    net, data = digits_net()
    assert not net.training
    assert accuracy(net, data.test).value > 0.9


def test_the_same_seed_trains_the_same_net():
    nets = [ResNet(1, 2, (4,)) for _ in range(2)]
    histories = [train_images(net, IMAGES, replace(FLOAT, steps=3), size=8) for net in nets]
    assert histories[0] == histories[1]
    assert torch.equal(nets[0].head.weight, nets[1].head.weight)
