import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import PackingError
from labkit.core.packing import pack_bits, packed_size, unpack_bits

BITS_AND_CODES = st.integers(1, 8).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=70))
)


@given(BITS_AND_CODES)
def test_stream_is_the_little_endian_number_that_its_definition_says(case):
    bits, codes = case
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    expected = number.to_bytes((len(codes) * bits + 7) // 8, "little")
    packed = pack_bits(torch.tensor(codes, dtype=torch.int64), bits)
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == expected
    assert packed_size(len(codes), bits) == len(expected)
    unpacked = unpack_bits(packed, bits, len(codes))
    assert unpacked.dtype == torch.uint8 and unpacked.tolist() == codes


@given(st.integers(1, 8), st.binary(max_size=64))
def test_every_stream_is_the_image_of_its_codes(bits, data):
    count = len(data) * 8 // bits
    used = packed_size(count, bits)
    stream = bytearray(data[:used])
    if used and (spare := used * 8 - count * bits):
        stream[-1] &= 0xFF >> spare
    packed = torch.tensor(list(stream), dtype=torch.uint8)
    assert torch.equal(pack_bits(unpack_bits(packed, bits, count), bits), packed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype_and_shape(dtype):
    codes = torch.arange(24).remainder(8).reshape(2, 3, 4)
    assert torch.equal(unpack_bits(pack_bits(codes.to(dtype), 3), 3, 24), codes.reshape(-1).byte())


def test_documented_layout_of_three_bits():
    assert pack_bits(torch.tensor([0b001, 0b010, 0b111]), 3).tolist() == [0b11010001, 0b1]


def test_same_words_as_gptq():
    words = pack_bits(torch.tensor([8] * 8), 4).view(torch.int32)
    assert words.tolist() == [0x88888888 - 2**32]


@pytest.mark.parametrize(
    ("codes", "bits"), [([0, 4], 2), ([0, -1], 4), ([0, 256], 8), ([0, 260], 3)]
)
def test_code_that_does_not_fit_is_named(codes, bits):
    with pytest.raises(PackingError, match=f"1 codes outside .*position 1, is {codes[1]}"):
        pack_bits(torch.tensor(codes), bits)


def test_real_numbers_and_odd_widths_are_refused():
    with pytest.raises(PackingError, match="float32"):
        pack_bits(torch.zeros(3), 4)
    for bits in (0, 9, 4.0, True):
        with pytest.raises(PackingError, match="1 to 8"):
            pack_bits(torch.zeros(3, dtype=torch.uint8), bits)
        with pytest.raises(PackingError, match="1 to 8"):
            unpack_bits(torch.zeros(3, dtype=torch.uint8), bits, 3)


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(1, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.int8),
        torch.zeros(2, 1, dtype=torch.uint8),
    ],
)
def test_stream_of_the_wrong_size_or_type_is_refused(packed):
    with pytest.raises(PackingError, match=r"Expected uint8 \[2\]"):
        unpack_bits(packed, 3, 5)


def test_bits_after_the_last_code_are_refused():
    with pytest.raises(PackingError, match="damaged"):
        unpack_bits(torch.tensor([0b0001_0000], dtype=torch.uint8), 4, 1)
