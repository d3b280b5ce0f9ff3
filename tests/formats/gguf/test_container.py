"""What is written is what is read: by labkit, by the gguf package, by ggml itself."""

from __future__ import annotations

import tracemalloc

import gguf as peer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.gguf.files import METADATA, TENSORS, blocks, weights, write_example
from formats.gguf.ggml import ggml, ggml_reads
from labkit.core.errors import FormatError, GroupSizeError, SchemeError, ShapeError
from labkit.formats.gguf.layout import TYPES
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.values import LETTERS, Kind, Value, array, string, u32
from labkit.formats.gguf.writer import Declared, GgufWriter
from labkit.quantize import gguf


def test_round_trip(tmp_path):
    with GgufFile(write_example(tmp_path / "a.gguf")) as file:
        assert (file.version, file.alignment) == (3, 32)
        assert file.fields == METADATA
        assert file.metadata["large"] == 2**63 + 1
        assert list(file.tensors) == [declared.name for declared in TENSORS]
        for declared in TENSORS:
            info = file.tensors[declared.name]
            assert (info.shape, info.type_name) == (declared.shape, declared.type_name)
            assert info.offset % 32 == 0
            assert np.array_equal(file.raw(declared.name), blocks(declared))
            expected = gguf.dequantize(blocks(declared), declared.type_name)
            assert np.array_equal(file.read(declared.name), expected.reshape(declared.shape))
        assert file.nbytes == (tmp_path / "a.gguf").stat().st_size
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.gguf"]


def test_the_gguf_package_reads_ours(tmp_path):
    reader = peer.GGUFReader(write_example(tmp_path / "a.gguf"))
    for key, value in METADATA.items():
        assert reader.fields[key].contents() == value.value
    assert [tensor.name for tensor in reader.tensors] == [declared.name for declared in TENSORS]
    for tensor, declared in zip(reader.tensors, TENSORS, strict=True):
        assert tuple(tensor.shape[::-1]) == declared.shape
        assert tensor.tensor_type.name == declared.type_name
        assert tensor.data.tobytes() == blocks(declared).tobytes()


def test_ggml_reads_ours(tmp_path):
    path = write_example(tmp_path / "a.gguf")
    with GgufFile(path) as file:
        seen = ggml_reads(path)
        assert seen == (
            len(METADATA),
            {i.name: (i.offset, i.nbytes) for i in file.tensors.values()},
        )


def test_block_sizes_are_ggmls():
    library = ggml()
    for number, (name, count, nbytes) in TYPES.items():
        assert library.ggml_type_name(number).decode().lower() == name.lower()
        assert library.ggml_blck_size(number) == count
        assert library.ggml_type_size(number) == nbytes


def test_ours_reads_the_gguf_package(tmp_path):
    path = tmp_path / "theirs.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_string("name", "Zoë")
    writer.add_array("tokens", ["a", "é"])
    writer.add_array("types", [1, 3])
    writer.add_uint64("many", 2**40)
    writer.add_bool("yes", False)
    writer.add_custom_alignment(64)
    x = np.random.default_rng(1).normal(size=(4, 96)).astype(np.float32)
    packed = peer.quants.quantize(x, peer.GGMLQuantizationType.Q5_1)
    writer.add_tensor("x", x)
    writer.add_tensor("half", x.astype(np.float16))
    writer.add_tensor("packed", packed, raw_dtype=peer.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(path) as file:
        assert file.alignment == 64
        assert file.metadata == {
            "general.architecture": "llama",
            "general.alignment": 64,
            "name": "Zoë",
            "tokens": ["a", "é"],
            "types": [1, 3],
            "many": 2**40,
            "yes": False,
        }
        assert np.array_equal(file.read("x"), x)
        assert np.array_equal(file.read("half"), x.astype(np.float16).astype(np.float32))
        assert np.array_equal(file.raw("packed"), packed)
        theirs = peer.quants.dequantize(packed, peer.GGMLQuantizationType.Q5_1)
        assert np.array_equal(file.read("packed"), theirs)


def test_types_that_labkit_does_not_decode(tmp_path):
    path = tmp_path / "theirs.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_tensor("numbers", np.arange(6, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(path) as file:
        assert file.raw("numbers").view(np.int32).tolist() == [list(range(6))]
        with pytest.raises(FormatError, match=r"'numbers' is in I32.*labkit decodes F32, F16"):
            file.read("numbers")


_NUMBERS = {
    kind: st.booleans()
    if kind == Kind.BOOL
    else st.floats(width=32 if kind == Kind.FLOAT32 else 64, allow_nan=False)
    if letter in "fd"
    else st.integers(
        *((0, 2**bits - 1) if letter.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    )
    for kind, letter in LETTERS.items()
    for bits in [{"b": 8, "h": 16, "i": 32, "q": 64}.get(letter.lower(), 0)]
}
_ITEMS = _NUMBERS | {Kind.STRING: st.text(st.characters(exclude_categories=["Cs"]))}
_VALUES = st.sampled_from(list(_ITEMS)).flatmap(
    lambda kind: st.one_of(
        _ITEMS[kind].map(lambda item: Value(kind, item)),
        st.lists(_ITEMS[kind], max_size=5).map(lambda items: array(kind, items)),
    )
)


@settings(max_examples=150, deadline=None)
@given(
    metadata=st.dictionaries(st.text("abc.é_", min_size=1), _VALUES, max_size=6),
    alignment=st.sampled_from([None, 1, 2, 8, 32, 4096]),
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), max_size=4),
)
def test_any_metadata_and_shapes(tmp_path_factory, metadata, alignment, shapes):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    if alignment is not None:
        metadata = metadata | {"general.alignment": u32(alignment)}
    declared = [Declared(f"t{i}", tuple(shape), "F32") for i, shape in enumerate(shapes)]
    with GgufWriter(path, metadata, declared, force=True) as writer:
        for tensor in declared:
            writer.write(tensor.name, weights(tensor))
    with GgufFile(path) as file:
        assert file.fields == metadata
        for tensor in declared:
            assert file.tensors[tensor.name].offset % (alignment or 32) == 0
            assert np.array_equal(file.read(tensor.name), weights(tensor))
    reader = peer.GGUFReader(path)
    assert [tensor.data.tobytes() for tensor in reader.tensors] == [
        weights(tensor).tobytes() for tensor in declared
    ]


@pytest.mark.parametrize("make", [torch.from_numpy, np.asarray, lambda x: torch.tensor(x).double()])
def test_floats_may_be_given_for_float_types(tmp_path, make):
    declared = [Declared(name, (6, 32), name) for name in ("F32", "F16", "BF16")]
    x = weights(declared[0])
    with GgufWriter(tmp_path / "a.gguf", {}, declared) as writer:
        for tensor in declared:
            writer.write(tensor.name, make(x[:4]))
            writer.write(tensor.name, make(x[4]))
            writer.write(tensor.name, make(x[5:]))
    with GgufFile(tmp_path / "a.gguf") as file:
        for name, dtype in [("F32", torch.float32), ("F16", torch.half), ("BF16", torch.bfloat16)]:
            assert np.array_equal(file.read(name), torch.tensor(x).to(dtype).float().numpy())


def test_a_vocabulary_is_read_at_once(tmp_path):
    """150 000 tokens cost a bounded amount of memory: that of the strings themselves."""
    tokens = [f"token {i} é" for i in range(150_000)]
    metadata = {"tokens": array(Kind.STRING, tokens), "types": array(Kind.INT32, [1] * 150_000)}
    with GgufWriter(tmp_path / "vocabulary.gguf", metadata, []):
        pass
    tracemalloc.start()
    with GgufFile(tmp_path / "vocabulary.gguf") as file:
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
        tracemalloc.stop()
        assert file.metadata["tokens"] == tokens


BAD_DECLARATIONS = {
    "no dimension": ([Declared("x", (), "F32")], FormatError),
    "no weights": ([Declared("x", (2, 0), "F32")], FormatError),
    "five dimensions": ([Declared("x", (1,) * 5, "F32")], FormatError),
    "a long name": ([Declared("x" * 64, (1,), "F32")], FormatError),
    "a name with a zero byte": ([Declared("a\0b", (1,), "F32")], FormatError),
    "a name twice": ([Declared("x", (1,), "F32")] * 2, FormatError),
    "an unknown type": ([Declared("x", (32,), "Q9_9")], SchemeError),
    "a row that ends within a block": ([Declared("x", (2, 255), "Q4_K")], GroupSizeError),
}


@pytest.mark.parametrize("case", BAD_DECLARATIONS)
def test_declarations_that_gguf_cannot_hold(tmp_path, case):
    tensors, error = BAD_DECLARATIONS[case]
    with pytest.raises(error):
        GgufWriter(tmp_path / "a.gguf", {}, tensors)
    assert not list(tmp_path.iterdir())


BAD_VALUES = {
    "too large": u32(2**32),
    "negative": u32(-1),
    "a text for a number": Value(Kind.FLOAT32, "1.0"),
    "a float beyond float32": Value(Kind.FLOAT32, 1e300),
    "a number for a text": Value(Kind.STRING, 3),
    "a number for a truth": Value(Kind.BOOL, 1),
    "half a surrogate pair": string("\ud800"),
    "an array of arrays": array(Kind.ARRAY, [[1]]),
    "an array of nothing": Value(Kind.ARRAY, [1]),
    "one wrong item": array(Kind.INT32, [1, 2.5]),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_values_that_gguf_cannot_hold(tmp_path, case):
    with pytest.raises(FormatError):
        GgufWriter(tmp_path / "a.gguf", {"the.key": BAD_VALUES[case]}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["", "a\0b", "k" * 65_536])
def test_keys_that_gguf_cannot_hold(tmp_path, key):
    with pytest.raises(FormatError, match="metadata key"):
        GgufWriter(tmp_path / "a.gguf", {key: u32(1)}, [])


@pytest.mark.parametrize("alignment", [u32(0), u32(48), Value(Kind.STRING, "32")])
def test_an_alignment_that_is_none(tmp_path, alignment):
    with pytest.raises(FormatError, match="power of two"):
        GgufWriter(tmp_path / "a.gguf", {"general.alignment": alignment}, [])


def test_rows_that_do_not_fit(tmp_path):
    declared = [Declared("x", (2, 64), "Q8_0"), Declared("y", (2, 64), "F32")]
    good = np.zeros((1, 68), np.uint8)
    with pytest.raises(FormatError, match="'y' is not whole, and 0 after it"):  # noqa: SIM117
        with GgufWriter(tmp_path / "a.gguf", {}, declared) as writer:
            with pytest.raises(ShapeError, match="should be 68"):
                writer.write("x", good[:, :34])
            with pytest.raises(ShapeError, match="float32 for a tensor of Q8_0"):
                writer.write("x", np.zeros((1, 64), np.float32))
            writer.write("x", np.repeat(good, 2, 0))
            with pytest.raises(SchemeError, match="int64"):
                writer.write("y", np.zeros((2, 64), np.int64))
            with pytest.raises(FormatError, match="'x' was written, and 'y' is due"):
                writer.write("x", good)
            with pytest.raises(FormatError, match="has 512 bytes, and 768 were written"):
                writer.write("y", np.zeros((3, 64), np.float32))
    assert not list(tmp_path.iterdir())
