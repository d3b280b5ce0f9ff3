"""Exercise 07.1: the header of a GGUF file, read from its bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.formats.gguf.declaring import Declared, lay_out
from labkit.formats.gguf.layout import ALIGNMENT, ALIGNMENT_KEY
from labkit.formats.gguf.parsing import parse_header
from labkit.formats.gguf.values import Kind, Value, array, boolean, f32, i32, string, u32, u64
from labkit.quantize.gguf_types import BLOCK_TYPES

Tensor = tuple[tuple[int, ...], int, int]


def read_header(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(metadata, name -> (shape, type number, first byte in the file)) of a file's bytes."""
    header = parse_header(memoryview(data), "data")
    metadata = {key: field.value for key, field in header.fields.items()}
    found = header.tensors.items()
    numbers = {name: BLOCK_TYPES[info.type_name].number for name, info in found}
    return metadata, {name: (info.shape, numbers[name], info.offset) for name, info in found}


def _file(metadata: dict[str, Value], tensors: list[Declared]) -> bytes:
    """A file whose tensors are all zeros."""
    alignment = metadata[ALIGNMENT_KEY].value if ALIGNMENT_KEY in metadata else ALIGNMENT
    header, infos = lay_out(metadata, tensors, alignment)
    last = list(infos.values())[-1]
    return header.ljust(last.offset + last.nbytes, b"\0")


def _cases(rng: np.random.Generator) -> Iterator[tuple[bytes]]:
    kinds = {
        "temperature": f32(0.5),
        "offset": i32(-7),
        "tied": boolean(True),
        "seed": u64(2**40),
        "tokens": array(Kind.STRING, ["a", "é", "the"]),
        "token_type": array(Kind.INT32, [1, -1, 3]),
    }
    matrix = Declared("blk.0.attn_q.weight", (4, 64), "Q8_0")
    norm = Declared("output_norm.weight", (5,), "F32")
    yield (_file({"general.architecture": string("llama")}, [matrix]),)
    yield (_file({"a": u32(3), **kinds}, [norm, matrix]),)
    yield (_file({ALIGNMENT_KEY: u32(128)}, [norm, matrix]),)
    yield (_file({"long": string("x" * 100), ALIGNMENT_KEY: u32(64)}, [matrix, norm]),)
    yield (_file({}, [Declared("a.weight", (3, 2, 32), "Q4_0"), norm]),)
    # Headers that end exactly at a multiple of 32, and one byte before and after.
    for length in range(31, 34):
        bare = len(lay_out({"k": string("")}, [matrix], 1)[0])
        yield (_file({"k": string("s" * (length - bare % 32))}, [matrix]),)
    for _ in range(6):
        names = [f"blk.{layer}.ffn_up.weight" for layer in range(int(rng.integers(1, 4)))]
        sizes = rng.integers(1, 9, (len(names), 2))
        tensors = [
            Declared(name, (int(rows), 32 * int(blocks)), str(rng.choice(["F16", "Q4_0", "Q8_0"])))
            for name, (rows, blocks) in zip(names, sizes, strict=True)
        ]
        yield (_file({"general.name": string("n" * int(rng.integers(0, 40)))}, tensors),)


def _names(trial: Trial) -> str | None:
    """every key and every tensor appears, and no other"""
    for got, expected, what in zip(trial.got, trial.expected, ("keys", "tensors"), strict=True):
        if set(got) != set(expected):
            return f"the {what} are {sorted(map(str, got))[:4]}"
    return None


READ_HEADER = Exercise(
    id="07.1",
    title="The header by hand",
    minutes=18,
    difficulty=3,
    goal="find every number of a GGUF header in its bytes",
    namespace={"struct": struct},
    stub='''
    def read_header(data):
        """(metadata, tensors): tensors is name -> (shape, type number, first byte in the file)."""
        at = 8  # behind magic and version

        def number(letter):
            """The number that begins at byte `at`; `at` moves behind it."""
            nonlocal at
            at += struct.calcsize("<" + letter)
            return struct.unpack_from("<" + letter, data, at - struct.calcsize("<" + letter))[0]

        ...
    ''',
    solution='''
    def read_header(data):
        """(metadata, tensors): tensors is name -> (shape, type number, first byte in the file)."""
        at = 8  # behind magic and version

        def number(letter):
            nonlocal at
            at += struct.calcsize("<" + letter)
            return struct.unpack_from("<" + letter, data, at - struct.calcsize("<" + letter))[0]

        def string():
            nonlocal at
            length = number("Q")
            at += length
            return data[at - length : at].decode()

        def value(kind):
            if kind == 8:
                return string()
            if kind == 9:
                item, count = number("I"), number("Q")
                return [value(item) for _ in range(count)]
            return number(letters[kind])

        letters = {4: "I", 5: "i", 6: "f", 7: "?", 10: "Q"}
        metadata = {}
        tensor_count, pair_count = number("Q"), number("Q")
        for _ in range(pair_count):
            key = string()
            metadata[key] = value(number("I"))
        table = {}
        for _ in range(tensor_count):
            name = string()
            shape = tuple(number("Q") for _ in range(number("I")))[::-1]
            table[name] = shape, number("I"), number("Q")
        alignment = metadata.get("general.alignment", 32)
        data_start = at + -at % alignment
        return metadata, {n: (shape, t, data_start + o) for n, (shape, t, o) in table.items()}
    ''',
    reference=read_header,
    answer_key=parse_header,
    generate=_cases,
    bounds=(_names, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "The dimensions are reversed: GGUF writes the innermost one, the length of a row, "
            "first; numpy and torch name it last.",
            swap=('for _ in range(number("I")))[::-1]', 'for _ in range(number("I")))'),
        ),
        Mutant(
            "Offsets in the table count from the beginning of the data, not of the file: add the "
            "place where the data begins.",
            swap=("(shape, t, data_start + o)", "(shape, t, o)"),
        ),
        Mutant(
            "The data begins at the next multiple of the alignment, not right behind the table.",
            swap=("at + -at % alignment", "at"),
        ),
        Mutant(
            "general.alignment was not looked at: 32 holds only where the file says nothing else.",
            swap=('metadata.get("general.alignment", 32)', "32"),
        ),
        Mutant(
            "A header that already ends at a multiple of the alignment needs no padding; you add a "
            "whole one. Use -at % alignment.",
            swap=("at + -at % alignment", "at + alignment - at % alignment"),
        ),
        Mutant(
            "Kind 5 is a *signed* integer, letter i: your -7 became 4294967289.",
            swap=('5: "i"', '5: "I"'),
        ),
        Mutant(
            "Kind 6 is a float32, letter f: its bits are not an integer.",
            swap=('6: "f"', '6: "I"'),
        ),
    ),
    hints=(
        "First two counts, number('Q') each: tensors, then pairs. Write string() (uint64 length in "
        "bytes, then UTF-8) and value(kind) on top of number().",
        "value(9), an array: uint32 kind of the items, uint64 count, then the items by value(). "
        "A pair is string(), then value(number('I')).",
        "A tensor: string(), uint32 count of dimensions, that many uint64 (innermost first: "
        "reverse them), uint32 type, uint64 offset within the data.",
        "The data begins at at + -at % alignment, where alignment is metadata's "
        "general.alignment, or 32.",
    ),
)
