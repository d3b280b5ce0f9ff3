"""How often a classifier is right, and how far chance alone moves that figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.core.errors import ShapeError
from labkit.data.images import ImageSet


@dataclass(frozen=True)
class Accuracy:
    """Which images were right: bool [n]."""

    right: Tensor

    @property
    def value(self) -> float:
        """The share that was right, 0 to 1."""
        return float(self.right.double().mean())

    @property
    def error(self) -> float:
        """One standard error, sqrt(p (1 - p) / n): what other test images would change."""
        return math.sqrt(self.value * (1 - self.value) / len(self.right))

    def minus(self, other: Accuracy) -> tuple[float, float]:
        """The difference of two models on the same images, and its standard error.

        Only images where one is right and the other wrong count: with b and c of them,
        (b - c) / n with an error of sqrt(b + c - (b - c)² / n) / n. That is much less than the
        error of either figure, for both models share the luck of the images (McNemar 1947).

        Raises:
            ShapeError: other images.
        """
        if self.right.shape != other.right.shape:
            raise ShapeError(f"{len(self.right)} and {len(other.right)} images", where="accuracy")
        count = len(self.right)
        better = int((self.right & ~other.right).sum())
        worse = int((other.right & ~self.right).sum())
        gained = better - worse
        return gained / count, math.sqrt(better + worse - gained**2 / count) / count


@torch.no_grad()
def logits_of(model: Callable[[Tensor], Tensor], images: ImageSet, size: int = 256) -> Tensor:
    """Logits [n, classes] of all images; a module is put into evaluation mode."""
    if isinstance(model, nn.Module):
        model.eval()
    return torch.cat([model(pixels) for pixels, _ in images.batches(size)])


def accuracy(model: Callable[[Tensor], Tensor], images: ImageSet) -> Accuracy:
    """Accuracy of anything that turns pixels [n, c, h, w] into logits [n, classes]."""
    return accuracy_of(logits_of(model, images), images)


def accuracy_of(logits: Tensor, images: ImageSet) -> Accuracy:
    """Accuracy of logits [n, classes] that were computed already."""
    return Accuracy(logits.argmax(1) == images.labels)
