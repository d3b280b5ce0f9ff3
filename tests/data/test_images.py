from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from labkit.core.errors import CorpusError
from labkit.data.images import ImageSet, in_memory, load_images, parts

PIXELS = torch.arange(6 * 4, dtype=torch.uint8).reshape(6, 1, 2, 2)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def test_the_digits_are_cut_the_same_way_every_time_and_no_test_image_calibrates():
    data, again = load_images(), load_images()
    assert (len(data.train), len(data.calibration), len(data.test)) == (1000, 1000, 797)
    assert data.shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    for part in ("train", "calibration", "test"):
        assert torch.equal(getattr(data, part).pixels(), getattr(again, part).pixels())
    rows = {
        part: {row.numpy().tobytes() for row in getattr(data, part).pixels()}
        for part in ("train", "calibration", "test")
    }
    assert rows["calibration"] == rows["train"]
    assert not rows["calibration"] & rows["test"]
    assert len(torch.unique(data.calibration.first(50).labels)) == 10


def test_pixels_are_255ths():
    pixels = load_images().test.pixels()
    assert pixels.dtype == torch.float32
    assert float(pixels.min()) == 0.0 and float(pixels.max()) == 1.0
    assert torch.equal((pixels * 255).round() / 255, pixels)


def test_batches_give_each_image_once_with_its_label():
    images = in_memory("six", PIXELS, LABELS, ("a", "b"))
    pixels, labels = (torch.cat(column) for column in zip(*images.batches(4), strict=True))
    assert torch.equal(pixels, PIXELS / 255)
    assert torch.equal(labels, LABELS)
    assert torch.equal(images.first(2).pixels(), PIXELS[:2] / 255)


@pytest.mark.parametrize("count", [0, 7])
def test_more_images_than_there_are_cannot_be_had(count):
    with pytest.raises(CorpusError, match=f"{count} images asked for"):
        in_memory("six", PIXELS, LABELS, ("a", "b")).first(count)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "labels are missing"),
        (LABELS[:5], "6 images and 5 labels"),
        (LABELS.float(), "float32"),
        (LABELS + 1, "labels from 1 to 2"),
        (LABELS - 1, "labels from -1 to 0"),
    ],
)
def test_labels_that_are_none_are_refused(labels, said):
    with pytest.raises(CorpusError, match=said):
        in_memory("six", PIXELS, labels, ("a", "b"))


def test_no_images_are_refused():
    with pytest.raises(CorpusError, match="at least one image"):
        ImageSet("none", LABELS[:0], ("a",), lambda indices: PIXELS[indices])


def test_one_class_is_refused():
    one = in_memory("ones", PIXELS, torch.ones(6, dtype=torch.int64), ("a", "b"))
    with pytest.raises(CorpusError, match="all 6 images are of one class, 'b'"):
        parts(one, one)


def write_cifar(folder, records=3):
    """CIFAR-10's binary version with few images; returns the first file's pixels and labels."""
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    files = {name: random.integers(0, 256, (records, 3073), np.uint8) for name in names}
    for name, file in files.items():
        file[:, 0] = np.arange(records) % 10
        (folder / name).write_bytes(file.tobytes())
    words = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta.txt").write_text("\n".join(words) + "\n\n")
    return files


def test_cifar_is_read_plane_by_plane(tmp_path):
    files = write_cifar(tmp_path)
    data = load_images(tmp_path)
    assert data.shape == (3, 32, 32)
    assert (len(data.train), len(data.test), len(data.classes)) == (15, 3, 10)
    record = files["data_batch_2.bin"][1]
    pixels = data.train.pixels()[4]
    assert int(data.train.labels[4]) == record[0]
    assert float(pixels[2, 5, 7]) == np.float32(record[1 + 2 * 1024 + 5 * 32 + 7]) / np.float32(255)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / "data_batch_3.bin").unlink(),
            "data_batch_3.bin: the file is miss",
        ),
        (lambda folder: (folder / "data_batch_3.bin").write_bytes(b"1" * 4000), "4000 bytes"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b""), "0 bytes"),
        (lambda folder: (folder / "batches.meta.txt").unlink(), "names of the classes"),
    ],
)
def test_a_damaged_cifar_is_refused(tmp_path, damage, said):
    write_cifar(tmp_path)
    damage(tmp_path)
    with pytest.raises(CorpusError, match=said):
        load_images(tmp_path)


def test_pickles_are_never_loaded(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    with pytest.raises(CorpusError, match=r"pickles.*binary version"):
        load_images(tmp_path)


def paint(path, colour, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(colour, tuple) else "L", size, colour).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two classes in train/ and in val/, in the layout of ImageNet."""
    for part in ("train", "val"):
        for number in range(2):
            paint(tmp_path / part / "red" / f"{number}.png", (255, 0, 0))
            paint(tmp_path / part / "grey" / f"{number}.bmp", 51)
    return tmp_path


def test_class_folders_are_read_in_colour_and_in_size(folders):
    data = load_images(folders, size=8)
    assert data.classes == ("grey", "red")
    assert data.shape == (3, 8, 8)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(data.test.pixels()[0], torch.full((3, 8, 8), 51 / 255))
    assert torch.equal(data.test.pixels()[3].mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))


def test_images_without_class_folders_have_no_labels(folders):
    for path in sorted((folders / "train").glob("*/*")):
        path.rename(folders / "train" / f"{path.parent.name}{path.name}")
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    with pytest.raises(CorpusError, match="labels are missing: 4 images"):
        load_images(folders)


def test_a_broken_image_is_named_when_it_is_read(folders):
    bad = folders / "train" / "red" / "1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    data = load_images(folders, size=8)
    with pytest.raises(CorpusError, match=r"1\.png: not a readable image"):
        data.train.pixels()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: [p.unlink() for p in (f / "train" / "red").iterdir()], "a class without images"),
        (
            lambda f: (f / "val" / "red").rename(f / "val" / "blue"),
            "blue: no class of the training",
        ),
        (lambda f: (f / "val").rename(f / "held"), "no train/ with val/"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folders, damage, said):
    damage(folders)
    with pytest.raises(CorpusError, match=said):
        load_images(folders)


def test_a_folder_of_one_class_is_refused(folders):
    for part in ("train", "val"):
        for path in (folders / part / "red").iterdir():
            path.unlink()
        (folders / part / "red").rmdir()
    with pytest.raises(CorpusError, match="one class, 'grey'"):
        load_images(folders)
