"""Images of your own: CIFAR-10's binary files, or one folder for each class as ImageNet has them.

CIFAR-10's "python version" is a set of pickles, which run code when they are loaded: the *binary
version* of the same page holds the same images as plain bytes, and is the one that is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labkit.core.errors import CorpusError
from labkit.data.images import ImageData, ImageSet, in_memory, parts

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_TEST = "test_batch.bin"
_CIFAR_RECORD = 1 + 3 * 32 * 32


def read_folder(folder: Path, size: int) -> ImageData:
    """CIFAR-10 where its files are there, else train/ and val/ (or test/) of class folders.

    Raises:
        CorpusError: neither.
    """
    if (folder / _CIFAR_TEST).is_file():
        return cifar10(folder)
    if (folder / "data_batch_1").is_file():
        raise CorpusError(
            "the python version of CIFAR-10 is made of pickles, which are never loaded here",
            where=str(folder),
            remedy='Download the "binary version" (cifar-10-binary.tar.gz) from the same page.',
        )
    test = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        raise CorpusError(
            "no train/ with val/ or test/ beside it, and not CIFAR-10's binary version",
            where=str(folder),
            remedy="Sort images into train/CLASS/ and val/CLASS/.",
        )
    train = image_folder(folder / "train", size)
    return parts(train, image_folder(test, size, train.classes))


def cifar10(folder: Path) -> ImageData:
    """CIFAR-10's binary version: 50 000 images to train on, 10 000 to test, 32 x 32 in colour.

    A record is a byte for the class, then 1024 bytes for each of red, green and blue, row by row.
    Source: Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".

    Raises:
        CorpusError: a file that is missing or cut off.
    """
    names = tuple(_lines(folder / "batches.meta.txt"))
    train = [_cifar_file(folder / name) for name in _CIFAR_TRAIN]
    pixels, labels = (torch.cat(column) for column in zip(*train, strict=True))
    test_pixels, test_labels = _cifar_file(folder / _CIFAR_TEST)
    return parts(
        in_memory("CIFAR-10, training", pixels, labels, names),
        in_memory("CIFAR-10, test", test_pixels, test_labels, names),
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise CorpusError("the names of the classes are missing", where=str(path))
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _cifar_file(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise CorpusError("the file is missing", where=str(path))
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % _CIFAR_RECORD:
        raise CorpusError(
            f"{raw.size} bytes are no whole number of records of {_CIFAR_RECORD}",
            where=str(path),
            remedy="Download it again: it was cut off.",
        )
    records = torch.from_numpy(raw.reshape(-1, _CIFAR_RECORD))
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].to(torch.int64)


def image_folder(folder: Path, size: int, classes: Sequence[str] | None = None) -> ImageSet:
    """Images sorted into one folder for each class, read when they are asked for.

    The shorter side is brought to `size`, the middle is cut out; grey images become colour.

    Args:
        classes: the names that the folders may have; None to take those that are there.

    Raises:
        CorpusError: no class folders, an empty one, or one of no known class; and, when an image
            is read, a file that is none.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not found:
        loose = sum(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())
        raise CorpusError(
            f"labels are missing: {loose} images, and no folder that names their class",
            where=str(folder),
            remedy="Sort the images into one folder for each class.",
        )
    names = tuple(classes or found)
    if strange := sorted(set(found) - set(names)):
        raise CorpusError(
            f"{', '.join(strange[:3])}: no class of the training images", where=str(folder)
        )
    paths: list[Path] = []
    labels: list[int] = []
    for name in found:
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise CorpusError("a class without images", where=str(folder / name))
        paths += files
        labels += [names.index(name)] * len(files)

    def read(indices: Tensor) -> Tensor:
        return torch.stack([_read_image(paths[index], size) for index in indices.tolist()])

    return ImageSet(str(folder), torch.tensor(labels), names, read)


def _read_image(path: Path, size: int) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except OSError as error:  # Pillow's UnidentifiedImageError is one, a cut-off file another
        raise CorpusError(
            f"not a readable image: {error}", where=str(path), remedy="Remove or replace the file."
        ) from error
    array = np.asarray(fitted, np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
