"""The allocation is the best one there is: every small case is compared with all of its own."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import SchemeError
from labkit.quantize.mixed import Allocation, Option, allocate

# Damages in 1/64: sums are exact, so that ties are ties.
options = st.builds(
    Option, st.integers(0, 30), st.integers(-64, 640).map(lambda number: number / 64)
)
rows = st.dictionaries(st.sampled_from(["int4", "int8", "fp16"]), options, min_size=1)
problems = st.lists(rows, min_size=1, max_size=5).map(
    lambda found: {f"layer {index}": row for index, row in enumerate(found)}
)


def everything(layers):
    for choice in itertools.product(*layers.values()):
        picked = [row[name] for row, name in zip(layers.values(), choice, strict=True)]
        names = dict(zip(layers, choice, strict=True))
        yield Allocation(names, sum(o.bytes for o in picked), math.fsum(o.damage for o in picked))


@settings(max_examples=200, deadline=None)
@given(problems, st.integers(0, 150))
def test_no_allocation_that_fits_is_better(layers, limit):
    fitting = [found for found in everything(layers) if found.bytes <= limit]
    if not fitting:
        with pytest.raises(SchemeError, match=f"the limit is {limit} bytes"):
            allocate(layers, limit)
        return
    found = allocate(layers, limit)
    best = min(fitting, key=lambda other: (other.damage, other.bytes))
    assert (found.damage, found.bytes) == (best.damage, best.bytes)
    assert found in list(everything(layers))


@settings(max_examples=100, deadline=None)
@given(problems, st.integers(0, 150), st.integers(2, 9))
def test_a_coarse_unit_fits_and_loses_no_more_than_its_steps(layers, limit, unit):
    try:
        found = allocate(layers, limit, unit=unit)
    except SchemeError:
        assert min(o.bytes for o in everything(layers)) > limit - unit * len(layers)
        return
    assert found.bytes <= limit
    tighter = [o for o in everything(layers) if o.bytes <= limit - unit * len(layers)]
    assert all(found.damage <= other.damage for other in tighter)


def test_more_room_is_never_worse():
    layers = {
        str(index): {"int4": Option(50 + index % 3, 1.0 / (index + 1)), "int8": Option(100, 0.01)}
        for index in range(40)
    }
    damages = [allocate(layers, limit).damage for limit in range(2040, 4001, 140)]
    assert damages == sorted(damages, reverse=True)
    assert damages[0] > damages[-1] == pytest.approx(0.4)


def test_the_size_of_a_net_with_few_shapes():
    """BERT-base: 72 linear layers of two sizes, three choices each."""
    small, large = 768 * 768, 768 * 3072
    layers = {}
    for index in range(72):
        weights = large if index % 6 > 3 else small
        damage = ((index * 7919) % 101 + 1) / 64
        layers[str(index)] = {
            "int4": Option(weights // 2, damage),
            "int8": Option(weights, damage / 256),
            "fp16": Option(weights * 2, 0.0),
        }
    total = sum(row["int8"].bytes for row in layers.values())
    found = allocate(layers, total * 3 // 4)
    assert total * 3 // 4 - small < found.bytes <= total * 3 // 4
    # The least sensitive per byte are those that got 4 bits.
    gain = {n: r["int4"].damage / r["int4"].bytes for n, r in layers.items()}
    coarse = [gain[n] for n, choice in found.choices.items() if choice == "int4"]
    fine = [gain[n] for n, choice in found.choices.items() if choice != "int4"]
    assert sum(coarse) / len(coarse) < sum(fine) / len(fine)


def test_a_limit_that_cannot_be_met_names_both_sizes():
    with pytest.raises(SchemeError, match=r"the limit is 10 bytes; .* takes 12"):
        allocate({"a": {"int4": Option(12, 1.0), "int8": Option(24, 0.0)}}, 10)


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        ({}, "0 layers"),
        ({"a": {}}, "without choices"),
        ({"a": {"int4": Option(-1, 0.0)}}, "not negative"),
        ({"a": {"int4": Option(1, math.nan)}}, "finite"),
        ({"a": {"int4": Option(1.5, 0.0)}}, "whole"),
    ],
)
def test_what_is_no_problem_at_all(layers, what):
    with pytest.raises(SchemeError, match=what):
        allocate(layers, 100)
