"""The roofline: counts against sums by hand, and a measurement that measures what it says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.memory import kv_cache_bytes
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape
from labkit.evaluate import roofline
from labkit.evaluate.roofline import (
    Roof,
    Work,
    crossing_tokens,
    decode_work,
    linear_work,
    prefill_work,
    product_rate,
    read_bandwidth,
)

LLAMA = MODEL_SHAPES["llama-2-7b"]


def test_a_linear_layer_by_hand():
    work = linear_work(4096, 4096, 1)
    assert work.operations == 2 * 4096 * 4096
    assert work.nbytes == 2 * 4096 * 4096 + 2 * (4096 + 4096)
    assert work.intensity == pytest.approx(1, rel=1e-3)
    assert linear_work(4096, 4096, 1, 4.125).intensity == pytest.approx(16 / 4.125, rel=5e-3)


def test_a_loop_counts_the_same_operations():
    rows, columns, tokens = 3, 5, 4
    count = sum(2 for _ in range(tokens) for _ in range(rows) for _ in range(columns))
    assert linear_work(rows, columns, tokens).operations == count


def test_decode_reads_all_weights_and_the_cache():
    context, batch = 512, 3
    work = decode_work(LLAMA, context, batch)
    weights = LLAMA.linear_parameters + LLAMA.vocab * LLAMA.hidden
    cache = kv_cache_bytes(LLAMA, context + 1, batch)
    assert work.nbytes == 2 * weights + cache
    scores = 4 * LLAMA.layers * LLAMA.hidden * (context + 1)
    assert work.operations == batch * (2 * weights + scores)


def test_prefill_is_all_its_tokens_one_after_another_but_for_the_bytes_and_the_logits():
    tiny = ModelShape("tiny", 2, 8, 16, 4, 2, 2, 32)
    tokens, head = 6, 2 * 32 * 8
    steps = [prefill_work(tiny, 1), *(decode_work(tiny, past) for past in range(1, tokens))]
    whole = prefill_work(tiny, tokens)
    assert whole.operations == sum(step.operations - head for step in steps) + head
    assert whole.nbytes < sum(step.nbytes for step in steps) / 4


@given(st.integers(1, 4096), st.floats(1e9, 1e12), st.floats(1e10, 1e15))
def test_the_roof_is_the_slower_of_two(tokens, bandwidth, peak):
    roof, work = Roof(bandwidth, peak), linear_work(512, 256, tokens)
    least = roof.seconds(work)
    assert least >= work.operations / peak and least >= work.nbytes / bandwidth
    assert work.operations / least == pytest.approx(roof.attainable(work.intensity))
    assert roof.bound_by(work) == ("memory" if work.intensity < roof.ridge else "arithmetic")


def test_work_adds_up():
    assert Work(3, 4) + Work(5, 6) == Work(8, 10)


@given(st.floats(1e-13, 4e-10), st.integers(1, 2000))
def test_the_crossing_is_where_both_take_as_long(unpack, tokens):
    roof, bits, wide = Roof(20e9, 200e9), 4.125, 32

    def narrow(n):
        return max(bits / 8 / roof.bandwidth, unpack + 2 * n / roof.peak)

    def broad(n):
        return max(wide / 8 / roof.bandwidth, 2 * n / roof.peak)

    crossing = crossing_tokens(roof, bits, wide, unpack)
    if abs(tokens - crossing) > 1e-6 * tokens:
        assert (narrow(tokens) < broad(tokens)) == (tokens < crossing)


def test_the_ends_of_the_crossing():
    roof = Roof(20e9, 200e9)
    assert crossing_tokens(roof, 4, 16, 1.0) == 0
    assert math.isinf(crossing_tokens(roof, 4, 16, 0.0))
    for bad in ((16, 4, 0.0), (4, 4, 0.0), (4, 16, -1e-9)):
        with pytest.raises(SchemeError, match="fewer bits"):
            crossing_tokens(roof, *bad)


def test_rates_are_counts_over_the_shortest_call(monkeypatch):
    """Two seconds a call, by a stopwatch of our own that makes the call as the real one does."""
    made = []

    def stopwatch(calls, seconds):
        made.append((seconds, [call() for call in calls]))
        return 2.0

    monkeypatch.setattr(roofline, "shortest", stopwatch)
    assert read_bandwidth(1000, seconds=3) == 512 / 2
    ((seconds, (words,)),) = made
    assert seconds == 3 and int(words) % 2**32 == 512 // 4 * 0x01010101 % 2**32
    for kind in roofline.PRODUCTS:
        assert product_rate(kind, 64, seconds=3) == 2 * 64**3 / 2
    for threads, size in ((4, 512), (5, 1024)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert roofline.measure_roof(seconds=3) == Roof(2**24 / 2, 2 * size**3 / 2)
    assert len(made[-2][1]) == 16  # pieces of 16 MiB, in turns


def test_each_kind_multiplies_its_own_numbers():
    for kind in ("float32", "bfloat16"):
        assert roofline._product(kind, 8)().dtype == getattr(torch, kind)
    a = roofline._product("float32", 64)()
    eight = roofline._product("int8", 64)()
    # b is [in, out] for torch and [out, in] for the weight: other sums of the same numbers.
    assert eight.shape == a.shape and eight.std() == pytest.approx(float(a.std()), rel=0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear_work(0, 1, 1),
        lambda: prefill_work(LLAMA, 0),
        lambda: decode_work(LLAMA, 1, 0),
        lambda: read_bandwidth(100),
        lambda: product_rate(size=0),
    ],
)
def test_sizes_that_cannot_be(call):
    with pytest.raises(ShapeError, match="Expected"):
        call()


def test_an_unknown_kind():
    with pytest.raises(SchemeError, match="float32, bfloat16, int8"):
        product_rate("int3")
