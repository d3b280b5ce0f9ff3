"""Labelled images in three parts: to train on, to calibrate with, and to test.

    load_images("digits")                 1797 digits of 8 x 8, in scikit-learn: offline
    load_images("cifar-10-batches-bin")   CIFAR-10's binary version, a folder
    load_images("imagenet")               train/ and val/ (or test/), a folder for each class

Calibration needs no labels, only images like those to come, so they are taken from the training
part: a test image that calibrated the model would no longer test it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from labkit.core.errors import CorpusError

CALIBRATION_IMAGES = 1000
_DIGITS_TRAIN = 1000


@dataclass(frozen=True)
class ImageSet:
    """Images and their classes.

    Args:
        name: for messages.
        labels: int64 [n].
        classes: their names.
        read: indices int64 [m] to float32 [m, channels, height, width] in 0 to 1.

    Raises:
        CorpusError: no images, labels that are missing or name no class.
    """

    name: str
    labels: Tensor
    classes: tuple[str, ...]
    read: Callable[[Tensor], Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        if self.labels is None or not isinstance(self.labels, Tensor):
            raise CorpusError(
                "labels are missing", where=self.name, remedy="Give one class for each image."
            )
        if self.labels.ndim != 1 or len(self.labels) == 0 or self.labels.is_floating_point():
            raise CorpusError(
                f"labels of shape {tuple(self.labels.shape)}, {self.labels.dtype}",
                where=self.name,
                remedy="Give one class index for each image, and at least one image.",
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise CorpusError(
                f"labels from {low} to {high}", where=f"{self.name}, {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """float32 [m, channels, height, width] in 0 to 1."""
        return self.read(torch.arange(len(self))[indices])

    def first(self, count: int) -> ImageSet:
        """The first `count` images. Raises CorpusError where there are fewer."""
        if not 0 < count <= len(self):
            raise CorpusError(f"{count} images asked for", where=f"{self.name}, {len(self)} images")
        return ImageSet(self.name, self.labels[:count], self.classes, self.read)

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """(pixels, labels), in order, each image once."""
        for indices in torch.arange(len(self)).split(size):
            yield self.read(indices), self.labels[indices]


@dataclass(frozen=True)
class ImageData:
    """What a lab on images needs.

    Raises:
        CorpusError: one class alone to train on: there is nothing to tell apart.
    """

    train: ImageSet
    calibration: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        found = torch.unique(self.train.labels)
        if len(found) < 2:
            raise CorpusError(
                f"all {len(self.train)} images are of one class, "
                f"{self.train.classes[int(found[0])]!r}",
                where=self.train.name,
                remedy="Give images of every class that is to be told apart.",
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.test.pixels(slice(0, 1)).shape[1:]
        return channels, height, width


def in_memory(name: str, pixels: Tensor, labels: Tensor, classes: tuple[str, ...]) -> ImageSet:
    """Images that are there already, uint8 (0 to 255) or float (0 to 1) [n, c, h, w].

    Raises:
        CorpusError: as `ImageSet`, or not as many labels as images.
    """
    if labels is not None and len(labels) != len(pixels):
        raise CorpusError(f"{len(pixels)} images and {len(labels)} labels", where=name)

    def read(indices: Tensor) -> Tensor:
        chosen = pixels[indices]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen.float()

    return ImageSet(name, labels, classes, read)


def parts(train: ImageSet, test: ImageSet, seed: int = 0) -> ImageData:
    """Add a calibration part: up to 1000 training images in an order that the seed decides.

    Mixed, because folders are read class by class: the first 50 must not be of one class.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    chosen = order[:CALIBRATION_IMAGES]
    calibration = ImageSet(
        f"{train.name}, calibration",
        train.labels[chosen],
        train.classes,
        lambda indices: train.read(chosen[indices]),
    )
    return ImageData(train, calibration, test)


def digits() -> ImageData:
    """The digits of scikit-learn: 1000 to train on (and to calibrate with), 797 to test.

    The parts are cut in the file's order, which the collection's writers follow one after the
    other; mixing first would put the same hand on both sides. Grey values are 0 to 16 there; here
    they become bytes, as an image file would hold them.
    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.from_numpy(found.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(found.target).to(torch.int64)
    names = tuple(map(str, found.target_names))
    cut = _DIGITS_TRAIN
    return parts(
        in_memory("digits, training", pixels[:cut], labels[:cut], names),
        in_memory("digits, test", pixels[cut:], labels[cut:], names),
    )


def load_images(source: str | Path = "digits", size: int = 224) -> ImageData:
    """The digits, CIFAR-10's folder, or a folder of class folders.

    Args:
        source: "digits", or a folder as `labkit.data.image_folders` reads it.
        size: height and width to which a folder's images are brought; CIFAR-10 keeps its own.

    Raises:
        CorpusError: no such folder, or one that holds something else.
    """
    if source == "digits":
        return digits()
    from labkit.data.image_folders import read_folder

    return read_folder(Path(source), size)
