"""Headers of safetensors files that lie: a typed error, and no memory for what they claim."""

from __future__ import annotations

import json
import struct
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from labkit.core.errors import FormatError
from labkit.formats.header import read_header
from labkit.formats.reading import open_tensors
from labkit.formats.writing import save_tensors

GOOD = {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def write(path, header: object, data: bytes = bytes(16), length: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<Q", len(text) if length is None else length)
    path.write_bytes(prefix + text + data)
    return path


def entry(**changes):
    return {"x": GOOD["x"] | changes}


def test_the_honest_header(tmp_path):
    path = write(tmp_path / "a.safetensors", GOOD | {"__metadata__": {"format": "pt"}})
    assert open_tensors(path)["x"].tolist() == [[0, 0], [0, 0]]


LIES = {
    "end beyond the file": entry(data_offsets=[0, 2**40]),
    "huge end": entry(data_offsets=[0, 2**70]),
    "negative begin": entry(data_offsets=[-16, 0]),
    "end before begin": entry(data_offsets=[16, 0]),
    "shape larger than its bytes": entry(shape=[2, 3]),
    "huge shape": entry(shape=[2**40, 2**40]),
    "shape whose product wraps to 4": entry(shape=[2**62, 4, 2**62, 4]),
    "negative shape": entry(shape=[-2, -2]),
    "shape of floats": entry(shape=[2.0, 2]),
    "shape of bools": entry(shape=[True, 4]),
    "shape that is none": entry(shape=None),
    "too many dimensions": entry(shape=[1] * 100 + [4]),
    "unknown dtype": entry(dtype="F128"),
    "dtype that is no name": entry(dtype=["F32"]),
    "one offset": entry(data_offsets=[16]),
    "no offsets": {"x": {"dtype": "F32", "shape": [2, 2]}},
    "more than it should have": entry(code="print()"),
    "entry that is a list": {"x": []},
    "bytes of nobody": {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    "a gap": {
        "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "y": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    },
    "an overlap": GOOD | {"y": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
    "a list": [],
    "a name twice": b'{"x": 1, "x": 2}',
    "no JSON": b"{x}",
    "no text": b"\xff\xfe",
    "brackets": b"[" * 50_000,
    "a number of many digits": b'{"x": ' + b"9" * 20_000 + b"}",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(tmp_path, lie):
    path = write(tmp_path / "bad.safetensors", LIES[lie])
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"bad\.safetensors.*not a valid safetensors file"):
        open_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize("length", [0, 1, 17, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_lies(tmp_path, length):
    path = write(tmp_path / "bad.safetensors", {}, b"", length)
    with pytest.raises(FormatError, match="a header of"):
        open_tensors(path)


def test_a_truncated_file(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(50), "y": torch.ones(50)})
    whole = (tmp_path / "a.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    for size in (0, 3, 8, 20, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            read_header(bad)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = write(tmp_path / "a.safetensors", GOOD)
    tensors = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="ends early"):
        tensors["x"]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, data):
    _mutate(tmp_path_factory, data)


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_mutated_files(tmp_path_factory, data):
    _mutate(tmp_path_factory, data)


def _mutate(tmp_path_factory, data) -> None:
    """Bytes changed, cut or inserted: never another error, and never other bytes than the library
    gives where both accept the file."""
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    whole = bytearray(save({"x": torch.arange(6.0).reshape(2, 3), "y": torch.arange(5)}))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        value = data.draw(st.binary(max_size=3))
        whole[place : place + data.draw(st.integers(0, 3))] = value
        if not whole:
            break
    path.write_bytes(whole)
    try:
        ours = dict(open_tensors(path))
    except FormatError:
        return
    theirs = load_file(path)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert ours[name].numpy().tobytes() == theirs[name].numpy().tobytes()
