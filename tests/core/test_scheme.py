import dataclasses

import pytest
import torch

from labkit.core.errors import SchemeError
from labkit.core.scheme import QuantScheme


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (QuantScheme(8), (-127, 127)),
        (QuantScheme(4), (-7, 7)),
        (QuantScheme(2), (-1, 1)),
        (QuantScheme(2, narrow_range=False), (-2, 1)),
        (QuantScheme(4, narrow_range=False), (-8, 7)),
        (QuantScheme(4, symmetric=False), (0, 15)),
        (QuantScheme(1, symmetric=False), (0, 1)),
    ],
)
def test_range_is_read_off_the_scheme(scheme, expected):
    assert (scheme.qmin, scheme.qmax) == expected


def test_str_names_everything_that_differs():
    assert str(QuantScheme(4, granularity="group", group_size=128)) == "int4 sym group 128"
    assert str(QuantScheme(8, False, "tensor")) == "int8 asym tensor"
    assert str(QuantScheme(4, narrow_range=False)) == "int4 sym full-range channel"


@pytest.mark.parametrize("bits", [1, 0, -4, 9, 4.0, True, None])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(SchemeError, match="2 to 8 bits"):
        QuantScheme(bits)


@pytest.mark.parametrize("size", [None, 0, -32, 32.0, True])
def test_group_needs_a_positive_whole_size(size):
    with pytest.raises(SchemeError, match="group_size"):
        QuantScheme(4, granularity="group", group_size=size)


def test_group_size_without_groups_is_refused():
    with pytest.raises(SchemeError, match="group_size 32 with granularity 'channel'"):
        QuantScheme(4, granularity="channel", group_size=32)


def test_unknown_granularity_names_the_known_ones():
    with pytest.raises(SchemeError, match="tensor, channel, group, token"):
        QuantScheme(4, granularity="row")


def test_scheme_is_a_value():
    assert QuantScheme(4) == QuantScheme(4) and hash(QuantScheme(4)) == hash(QuantScheme(4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantScheme(4).bits = 8


def test_code_dtype_holds_every_code():
    for bits in range(2, 9):
        for symmetric in (True, False):
            scheme = QuantScheme(bits, symmetric, narrow_range=False)
            info = torch.iinfo(scheme.code_dtype)
            assert info.min <= scheme.qmin and scheme.qmax <= info.max
