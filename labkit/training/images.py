"""Train a classifier of images, in floating point or with rounded numbers: the trainer is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.data.images import ImageSet
from labkit.training.checkpoint import History
from labkit.training.losses import classification_loss, require_classes
from labkit.training.trainer import Progress, TrainSettings, train

Batch = tuple[Tensor, Tensor]

FLOAT = TrainSettings(steps=160, lr=4e-3, weight_decay=0.01, warmup=20, clip_norm=5.0, divergence=8)
"""Trains the digits net in seconds."""

QAT = replace(FLOAT, steps=120, lr=1e-3, warmup=5, freeze_at=0.75)
"""A short run at a low rate that repairs what rounding broke; ranges stand still at its end."""


def train_images(
    model: nn.Module,
    images: ImageSet,
    settings: TrainSettings = FLOAT,
    *,
    size: int = 64,
    shift: int = 1,
    flip: bool = False,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> History:
    """Train in place on cross-entropy, and leave the model in evaluation mode.

    Args:
        size: images in a batch, at most as many as there are.
        shift, flip: how batches vary, see `image_batches`. Digits are shifted and never mirrored.
        progress, folder: as `labkit.training.trainer.train`.

    Raises:
        CorpusError: one class alone.
        DivergenceError: as `train`.
    """
    require_classes(images.labels)
    batches = image_batches(images, size, settings.seed, shift=shift, flip=flip)
    return train(model, batches, settings, loss=image_loss, progress=progress, folder=folder)


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of (pixels, labels)."""
    pixels, labels = batch
    return classification_loss(model(pixels), labels)


def image_batches(
    images: ImageSet, size: int, seed: int = 0, *, shift: int = 0, flip: bool = False
) -> Callable[[int], Batch]:
    """Batches as a function of the step: each image once an epoch, in an order of its own.

    Args:
        shift: move each image by up to so many pixels, filling with zeros.
        flip: mirror every other image.
    """
    size = min(size, len(images))
    each = len(images) // size

    def batch(step: int) -> Batch:
        epoch, place = divmod(step, each)
        order = torch.randperm(len(images), generator=_generator(seed, epoch, 0))
        chosen = order[place * size : (place + 1) * size]
        pixels = images.read(chosen)
        random = _generator(seed, step, 1)
        if flip:
            mirrored = torch.rand(len(pixels), 1, 1, 1, generator=random) < 0.5
            pixels = torch.where(mirrored, pixels.flip(3), pixels)
        return _shifted(pixels, shift, random) if shift else pixels, images.labels[chosen]

    return batch


def _generator(seed: int, number: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 2 + purpose) * 1_000_003 + number)


def _shifted(pixels: Tensor, most: int, random: torch.Generator) -> Tensor:
    height, width = pixels.shape[2:]
    padded = functional.pad(pixels, (most,) * 4)
    offsets = torch.randint(0, 2 * most + 1, (len(pixels), 2), generator=random).tolist()
    moved = [
        image[:, down : down + height, right : right + width]
        for image, (down, right) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(moved)
