"""Files that lie: a typed error, and neither memory nor time for what they claim."""

from __future__ import annotations

import random
import resource
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.gguf.files import write_example
from formats.gguf.ggml import ggml_reads
from labkit.core.errors import FormatError
from labkit.formats.gguf import cursor
from labkit.formats.gguf.parsing import parse_header
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.values import Kind, Value, encode, u32


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def tensor(name="x", shape=(4,), number=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)


def pair(key, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def strings(*lengths_and_bytes: bytes, count: int | None = None) -> bytes:
    count = len(lengths_and_bytes) if count is None else count
    return struct.pack("<IQ", Kind.STRING, count) + b"".join(lengths_and_bytes)


def file(tensors=(), pairs=(), *, version=3, counts=None, magic=b"GGUF", data=64) -> bytes:
    counts = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(data)


def aligned(value: Value) -> bytes:
    return file([tensor()], [encode("general.alignment", value)])


LIES = {
    "no magic": file(magic=b"GGML"),
    "version 0": file(version=0),
    "version 1": file(version=1),
    "version 4": file(version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "many tensors": file([tensor()], counts=(2, 0)),
    "2^63 tensors": file(counts=(2**63, 0)),
    "2^64 - 1 pairs": file(counts=(0, 2**64 - 1)),
    "empty key": file(pairs=[pair("", Kind.UINT8, b"\1")]),
    "key twice": file(pairs=[pair("k", Kind.UINT8, b"\1")] * 2),
    "key of 2^62 bytes": file(pairs=[struct.pack("<QI", 2**62, 0) + bytes(20)]),
    "long key": file(pairs=[pair("k" * 65_536, Kind.UINT8, b"\1")]),
    "key that is no UTF-8": file(pairs=[pair(b"\xff", Kind.UINT8, b"\1")]),
    "unknown kind": file(pairs=[pair("k", 13, bytes(8))]),
    "truth of 2": file(pairs=[pair("k", Kind.BOOL, b"\2")]),
    "string beyond the end": file(pairs=[pair("k", Kind.STRING, struct.pack("<Q", 2**63))]),
    "string that is no UTF-8": file(pairs=[pair("k", Kind.STRING, text(b"a\xc3("))]),
    "surrogate": file(pairs=[pair("k", Kind.STRING, text(b"\xed\xa0\x80"))]),
    "array of an unknown kind": file(pairs=[pair("k", Kind.ARRAY, struct.pack("<IQ", 99, 0))]),
    "array of 2^61 numbers": file(pairs=[pair("k", Kind.ARRAY, struct.pack("<IQ", 10, 2**61))]),
    "array of 2^64 - 1 bytes": file(
        pairs=[pair("k", Kind.ARRAY, struct.pack("<IQ", 0, 2**64 - 1))]
    ),
    "array of 2^61 strings": file(pairs=[pair("k", Kind.ARRAY, strings(count=2**61))]),
    "strings that end early": file(pairs=[pair("k", Kind.ARRAY, strings(count=8))], data=0),
    "a long string in an array": file(
        pairs=[pair("k", Kind.ARRAY, strings(struct.pack("<Q", 2**64 - 1)))]
    ),
    "a bad string in an array": file(
        pairs=[pair("k", Kind.ARRAY, strings(text("a"), text(b"\x80")))]
    ),
    "truths of 2": file(pairs=[pair("k", Kind.ARRAY, struct.pack("<IQ", Kind.BOOL, 2) + b"\1\2")]),
    "array of arrays": file(pairs=[pair("k", Kind.ARRAY, struct.pack("<IQ", Kind.ARRAY, 0))]),
    "arrays a million deep": file(
        pairs=[pair("k", Kind.ARRAY, struct.pack("<IQ", Kind.ARRAY, 1) * 10**6)]
    ),
    "alignment 0": aligned(u32(0)),
    "alignment 48": aligned(u32(48)),
    "alignment of another kind": aligned(Value(Kind.UINT64, 32)),
    "alignment of text": aligned(Value(Kind.STRING, "32")),
    "alignment of 2^31": aligned(u32(2**31)),
    "name twice": file([tensor(), tensor(offset=32)]),
    "name with a zero byte": file([tensor("a\0b")]),
    "key with a zero byte": file(pairs=[pair("a\0b", Kind.UINT8, b"\1")]),
    "name of 64 bytes": file([tensor("x" * 64)]),
    "name that is no UTF-8": file([tensor(b"\xfe")]),
    "five dimensions": file([tensor(shape=(1,) * 5)]),
    "2^32 - 1 dimensions": file([text("x") + struct.pack("<I", 2**32 - 1) + bytes(64)]),
    "dimension 0": file([tensor(shape=(4, 0))]),
    "dimension 2^63": file([tensor(shape=(2**63,))]),
    "2^63 weights": file([tensor(shape=(2**32, 2**31))]),
    "a product that wraps to 0": file([tensor(shape=(2**62, 4, 2**62, 4))]),
    "a product that wraps to 4": file([tensor(shape=(2**62 + 1, 4))]),
    "unknown type": file([tensor(number=99)]),
    "a type that was given up": file([tensor(number=4)]),
    "half a block": file([tensor(shape=(16,), number=8)]),
    "offset past the end": file([tensor(offset=2**40)]),
    "offset 2^64 - 32": file([tensor(offset=2**64 - 32)]),
    "offset off the alignment": file([tensor(), tensor("y", offset=16)]),
    "overlap": file([tensor(shape=(16,)), tensor("y", offset=32)]),
    "the same bytes twice": file([tensor(), tensor("y", offset=0)]),
    "a gap": file([tensor(), tensor("y", offset=64)], data=128),
    "another order": file([tensor(offset=32), tensor("y", offset=0)]),
    "data that ends early": file([tensor(shape=(17,))]),
    "no data": file([tensor()], data=0)[:-1],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies(tmp_path, lie):
    path = tmp_path / "bad.gguf"
    path.write_bytes(LIES[lie])
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"bad\.gguf: "):
        GgufFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_honest_file_of_these(tmp_path):
    """The lies above are told about this file, which is none."""
    path = tmp_path / "good.gguf"
    path.write_bytes(file([tensor(), tensor("y", offset=32)], [pair("k", Kind.BOOL, b"\1")]))
    with GgufFile(path) as good:
        assert good.metadata == {"k": True}
        assert good.read("y").tolist() == [0, 0, 0, 0]


def test_the_error_says_where(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(file(pairs=[pair("some.key", 77, b"")]))
    with pytest.raises(FormatError, match=r"'some\.key' has the type 77.*at byte 40"):
        GgufFile(path)


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGUF\3\0\0\0"])
def test_files_that_end_at_once(tmp_path, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(FormatError):
        GgufFile(tmp_path / "bad.gguf")


def test_no_file(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(FormatError, match="no such file"):
            GgufFile(path)


def test_every_truncation_is_refused(tmp_path):
    whole = write_example(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    last = 18  # bytes of padding, which may be missing
    for size in [*range(700), *range(700, len(whole) - last, 7), len(whole) - last - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            GgufFile(path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = write_example(tmp_path / "a.gguf")
    with GgufFile(path) as opened:
        with path.open("r+b") as handle:
            handle.truncate(1000)
        with pytest.raises(FormatError, match="the file changed since it was opened"):
            opened.raw("brain.weight")
    with pytest.raises(FormatError, match="closed"):
        opened.raw("norm.weight")


def test_a_header_of_too_many_values(tmp_path, monkeypatch):
    monkeypatch.setattr(cursor, "MAX_ITEMS", 1000)
    path = tmp_path / "bad.gguf"
    path.write_bytes(file(pairs=[pair("k", Kind.ARRAY, struct.pack("<IQ", 0, 2000) + bytes(2000))]))
    with pytest.raises(FormatError, match="2000 numbers in 'k' are more than labkit reads"):
        GgufFile(path)


def test_a_header_of_too_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(cursor, "MAX_HEADER", 1000)
    path = tmp_path / "bad.gguf"
    path.write_bytes(file(pairs=[pair("k", Kind.STRING, text("a" * 2000))]))
    with pytest.raises(FormatError, match="a header of more than 1000 bytes"):
        GgufFile(path)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64 - 1))
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, seed):
    folder = tmp_path_factory.getbasetemp()
    example = folder / "example.gguf"
    if not example.exists():
        write_example(example)
    open_mutated(folder / "mutated.gguf", example.read_bytes(), random.Random(seed))


@pytest.mark.slow
def test_many_mutated_files(tmp_path):
    whole = write_example(tmp_path / "a.gguf").read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = sum(
        open_mutated(tmp_path / "mutated.gguf", whole, random.Random(seed))
        for seed in range(120_000)
    )
    assert 1_000 < accepted < 119_000  # some mutations hit nothing but data
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def open_mutated(path, whole: bytes, rng: random.Random) -> bool:
    """Mutate a file and open it: what labkit accepts, ggml reads in the same way."""
    content = mutated(whole, rng)
    try:
        header = parse_header(memoryview(content), "mutated.gguf")
    except FormatError:
        return False
    path.write_bytes(content)
    with GgufFile(path) as opened:
        assert opened.tensors == header.tensors
        for name in opened.tensors:
            opened.raw(name).sum()
    places = {info.name: (info.offset, info.nbytes) for info in header.tensors.values()}
    assert ggml_reads(path) == (len(header.fields), places)
    return True


INTERESTING = (0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 33, 48, 255, 2**31 - 1, 2**31, 2**32 - 1)
HUGE = (2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """One to four changes, most of them in the header: flipped bits, numbers that lie, bytes cut,
    doubled, exchanged or put in."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        limit = max(1, len(content) - rng.choice((0, 1200)))
        place = rng.randrange(limit)
        length = rng.choice((1, 2, 4, 8, 24))
        match rng.randrange(8):
            case 0:
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                content[place] = rng.randrange(256)
            case 2:
                content[place : place + 4] = struct.pack("<I", rng.choice(INTERESTING))
            case 3:
                content[place : place + 8] = struct.pack("<Q", rng.choice(INTERESTING + HUGE))
            case 4:
                del content[place : place + length]
            case 5:
                content[place:place] = content[place : place + length]
            case 6:
                other = rng.randrange(limit)
                content[place : place + length] = content[other : other + length]
            case 7:
                content[place:place] = rng.randbytes(length)
        if not content:
            break
    if rng.random() < 0.1:
        del content[rng.randrange(len(content) + 1) :]
    return bytes(content)
