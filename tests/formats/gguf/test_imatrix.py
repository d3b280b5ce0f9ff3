"""The importance matrix as a file: llama.cpp's layout, and damage that is refused."""

from __future__ import annotations

from pathlib import Path

import gguf as peer
import numpy as np
import pytest

from labkit.core.errors import CalibrationError, FormatError
from labkit.formats.gguf import imatrix
from labkit.formats.gguf.imatrix import ImportanceMatrix
from labkit.formats.gguf.values import string
from labkit.formats.gguf.writer import Declared, GgufWriter


def sample() -> ImportanceMatrix:
    generator = np.random.default_rng(0)
    names = ["blk.1.ffn_down.weight", "blk.0.attn_q.weight"]
    sums = {name: generator.random(8, np.float32) for name in names}
    return ImportanceMatrix(sums, dict.fromkeys(names, 1021), ("prose", "code"), 4, 256)


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    imatrix.write(path, sample())
    back = imatrix.read(path)
    assert back.counts == sample().counts
    assert (back.datasets, back.chunk_count, back.chunk_size) == (("prose", "code"), 4, 256)
    for name, sums in sample().sums.items():
        assert np.array_equal(back.sums[name], sums)


def test_the_layout_is_llama_imatrix_own(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    imatrix.write(path, sample())
    reader = peer.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["prose", "code"]
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 256
    assert [tensor.name for tensor in reader.tensors] == [
        "blk.0.attn_q.weight.in_sum2",
        "blk.0.attn_q.weight.counts",
        "blk.1.ffn_down.weight.in_sum2",
        "blk.1.ffn_down.weight.counts",
    ]
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    # ggml writes no outer axes of 1.
    assert [tensor.shape.tolist() for tensor in reader.tensors[:2]] == [[8], [1]]
    assert reader.tensors[1].data.tolist() == [1021.0]


def test_a_file_of_the_peers_writer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    sums = np.arange(1, 9, dtype=np.float32)
    # Older versions of llama-imatrix wrote both with two axes.
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", sums[None])
    writer.add_tensor("blk.0.ffn_up.weight.counts", np.array([[1024]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = imatrix.read(path)
    assert found.datasets == ("wiki.txt",)
    assert np.array_equal(found.mean("blk.0.ffn_up.weight", 8), sums / np.float32(1024))


def test_the_mean_is_divided_in_float32() -> None:
    sums = np.array([1.0, 2.0, 1e30], np.float32)
    found = ImportanceMatrix({"w": sums}, {"w": 3}).mean("w", 3)
    assert found.dtype == np.float32
    assert np.array_equal(found, sums / np.float32(3))


def test_unseen_weights_have_none_and_uncounted_ones_count_alike() -> None:
    matrix = ImportanceMatrix({"w": np.zeros(3, np.float32)}, {"w": 0})
    assert matrix.mean("v", 3) is None
    assert np.array_equal(matrix.mean("w", 3), np.ones(3, np.float32))


def test_another_models_matrix_is_refused() -> None:
    with pytest.raises(CalibrationError, match="8 columns for a weight of 16"):
        sample().mean("blk.0.attn_q.weight", 16)


def test_nothing_seen_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="without a weight"):
        imatrix.write(tmp_path / "empty.gguf", ImportanceMatrix({}, {}))
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(FormatError, match="already"):
        imatrix.write(path, sample())
    assert path.read_bytes() == b"mine"
    imatrix.write(path, sample(), force=True)
    assert imatrix.read(path).chunk_count == 4


def _file(path: Path, tensors: dict[str, tuple[str, list[float]]]) -> Path:
    declared = [Declared(name, (len(v),), kind) for name, (kind, v) in tensors.items()]
    with GgufWriter(path, {"general.type": string("imatrix")}, declared) as writer:
        for name, (_, values) in tensors.items():
            writer.write(name, np.array([values], np.float32))
    return path


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"norm.weight": ("F32", [1.0])}, "no importance matrix"),
        ({"a.in_sum2": ("F32", [1.0])}, "1 sums and 0 counts"),
        ({"a.in_sum2": ("F32", [1.0]), "b.counts": ("F32", [1.0])}, "1 sums and 1 counts"),
        ({"a.in_sum2": ("F16", [1.0]), "a.counts": ("F32", [1.0])}, "not float32"),
        ({"a.in_sum2": ("F32", [1.0]), "a.counts": ("F32", [1.0, 1.0])}, "experts"),
        ({"a.in_sum2": ("F32", [1.0]), "a.counts": ("F32", [-1.0])}, "count of -1"),
    ],
)
def test_damaged_files_are_refused(
    tensors: dict[str, tuple[str, list[float]]], what: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=what):
        imatrix.read(_file(tmp_path / "damaged.gguf", tensors))


def test_the_older_format_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(b"\x01\0\0\0\x04\0\0\0blk.\x01\0\0\0\x01\0\0\0" + bytes(4))
    with pytest.raises(FormatError):
        imatrix.read(path)
