from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import (
    CalibrationError,
    GroupSizeError,
    NonFiniteError,
    SchemeError,
    ShapeError,
)
from labkit.core.scheme import QuantScheme
from labkit.quantize import gptq, rtn
from labkit.quantize.gptq_order import by_group_importance, by_importance, inverse
from labkit.quantize.hessian import InputStats

INT4 = QuantScheme(4, True, "group", 16, narrow_range=False)


def problem(rows=24, columns=96, tokens=300, seed=0):
    """A weight and correlated inputs whose channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(tokens, columns, generator=generator) @ mix + 0.3
    return weight, x * torch.linspace(-1, 1, columns).exp()


def damage(weight, quantized, stats):
    change = (weight - quantized.dequantize()).double()
    return float((change @ stats.hessian().double() * change).sum())


SCHEMES = st.builds(
    lambda bits, symmetric, granularity, narrow: QuantScheme(
        bits, symmetric, granularity, 16 if granularity == "group" else None, narrow
    ),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
    st.sampled_from(["tensor", "channel", "group"]),
    st.booleans(),
)
ORDERS = st.sampled_from(["stored", "act", "act static", "group-aware"])


def order_settings(order, scheme):
    grouped = scheme.granularity == "group"
    return {
        "act_order": order.startswith("act"),
        "static_groups": order == "act static" and grouped,
        "group_aware": order == "group-aware" and grouped,
    }


@settings(max_examples=25)
@given(SCHEMES, ORDERS, st.sampled_from([7, 32, 128]), st.integers(1, 70), st.integers(0, 99))
def test_the_compiled_loop_has_the_bits_of_the_plain_one(scheme, order, block, rows, seed):
    weight, x = problem(rows, seed=seed)
    stats = InputStats(96).add(x)
    plain, compiled = (
        gptq.solve(
            weight, stats, scheme, block_size=block, loop=loop, **order_settings(order, scheme)
        )
        for loop in ("plain", "numba")
    )
    for part, other in zip(parts(plain.quantized), parts(compiled.quantized), strict=True):
        assert torch.equal(part, other)
    assert plain.loss == compiled.loss


def parts(quantized):
    found = (quantized.codes, quantized.scale, quantized.zero_point, quantized.g_idx)
    return [part for part in found if part is not None]


@settings(max_examples=20)
@given(SCHEMES, ORDERS, st.sampled_from([32, 128]), st.integers(0, 99))
def test_both_routes_find_the_same(scheme, order, block, seed):
    weight, x = problem(8, seed=seed)
    stats = InputStats(96).add(x)
    found = [
        gptq.solve(
            weight, stats, scheme, block_size=block, route=route, **order_settings(order, scheme)
        )
        for route in ("inverse", "substitution")
    ]
    equal = found[0].quantized.codes == found[1].quantized.codes
    # A tie may fall either way, and takes its row along: 1 of 8.
    assert int((~equal.all(dim=1)).sum()) <= 1
    assert found[0].loss == pytest.approx(found[1].loss, rel=0.05)


@settings(max_examples=25)
@given(SCHEMES, ORDERS, st.integers(0, 99))
def test_loss_is_the_trace(scheme, order, seed):
    weight, x = problem(seed=seed)
    stats = InputStats(96).add(x)
    solution = gptq.solve(weight, stats, scheme, **order_settings(order, scheme))
    assert solution.loss == pytest.approx(damage(weight, solution.quantized, stats), rel=1e-3)


@pytest.mark.parametrize(
    "bits, symmetric, size", list(product([2, 3, 4, 8], [True, False], [None, 16, 32]))
)
def test_less_damage_than_rounding_to_nearest(bits, symmetric, size):
    scheme = QuantScheme(bits, symmetric, "group" if size else "channel", size, False)
    weight, x = problem()
    stats = InputStats(96).add(x)
    nearest = damage(weight, rtn.quantize(weight, scheme), stats)
    for order in ("stored", "act", "act static", "group-aware"):
        solution = gptq.solve(weight, stats, scheme, **order_settings(order, scheme))
        assert damage(weight, solution.quantized, stats) < 0.8 * nearest


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    """H is a multiple of I: no column can repair another, so nothing is moved."""
    weight, _ = problem()
    stats = InputStats.from_hessian(torch.eye(96) * 3, tokens=96)
    ours = gptq.quantize(weight, stats, INT4)
    assert torch.equal(ours.codes, rtn.quantize(weight, INT4).codes)


def test_two_columns_by_hand():
    """w = (0.5, 0.5) on a grid of step 1, H = [[2, 1], [1, 2]]: 0.5 → 0, the second repairs it."""
    stats = InputStats.from_hessian(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), tokens=2)
    weight = torch.tensor([[0.45, 0.45], [0.0, 7.5]])
    scheme = QuantScheme(4, True, "tensor", narrow_range=False)
    assert float(rtn.quantize(weight, scheme).scale) == 1.0
    assert rtn.quantize(weight, scheme).codes.tolist()[0] == [0, 0]
    # The second column moves by 0.45 · H_01 / H_11 to 0.675.
    assert gptq.quantize(weight, stats, scheme, damp=0.0).codes.tolist()[0] == [0, 1]


def test_act_order_scatters_groups_unless_they_are_static():
    weight, x = problem()
    stats = InputStats(96).add(x)
    order = by_importance(stats.hessian().diagonal())
    scattered = gptq.quantize(weight, stats, INT4, act_order=True)
    assert scattered.g_idx is not None and scattered.g_idx.dtype == torch.int32
    assert torch.equal(scattered.g_idx[order].long(), torch.arange(96) // 16)
    for setting in ({"act_order": True, "static_groups": True}, {"group_aware": True}):
        assert gptq.quantize(weight, stats, INT4, **setting).g_idx is None
    static = gptq.quantize(weight, stats, INT4, static_groups=True)
    assert torch.equal(static.scale, rtn.quantize(weight, INT4).scale)


def test_orders_are_permutations():
    diagonal = torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 0.5])
    assert by_importance(diagonal).tolist() == [4, 1, 2, 3, 0, 5]
    assert by_group_importance(diagonal, 2).tolist() == [4, 5, 1, 0, 2, 3]
    order = by_importance(diagonal)
    assert torch.equal(diagonal[order][inverse(order)], diagonal)


def test_important_columns_first_helps_where_inputs_differ_in_size():
    weight, x = problem(64)
    stats = InputStats(96).add(x)
    channel = QuantScheme(3, True, narrow_range=False)
    plain, ordered = (gptq.solve(weight, stats, channel, act_order=a).loss for a in (False, True))
    assert ordered < plain


def test_dead_columns_become_zero_and_are_reported():
    weight, x = problem()
    x[:, [0, 17, 95]] = 0
    stats = InputStats(96).add(x)
    solution = gptq.solve(weight, stats, INT4)
    assert solution.dead_columns == 3
    assert not bool(solution.quantized.dequantize()[:, [0, 17, 95]].any())
    assert solution.loss == pytest.approx(damage(weight, solution.quantized, stats), rel=1e-3)


def test_damp_is_raised_until_h_can_be_factored_and_reported():
    weight, x = problem(tokens=10)
    stats = InputStats(96).add(x)
    solution = gptq.solve(weight, stats, INT4, damp=0.0)
    assert solution.damp > 0
    assert f"damp raised from 0 to {solution.damp:g}" in solution.note
    assert "10 calibration tokens for 96 columns" in solution.note
    assert gptq.solve(weight, InputStats(96).add(problem()[1]), INT4).note == ""
    # Negative diagonal entries that a damp of 0.01 does not lift, and one of 1 does.
    hessian = torch.eye(96)
    hessian[5, 5] = -0.5
    odd = gptq.solve(weight, InputStats.from_hessian(hessian, 96), INT4)
    assert odd.damp == 0.64 and "from 0.01 to 0.64" in odd.note


@pytest.mark.parametrize("route", ["substitution", "inverse"])
def test_attempts_that_failed_leave_no_trace(route):
    """The factor is written over H: after a failure the next attempt must see H as it was."""
    weight, columns = torch.randn(6, 512, generator=torch.Generator().manual_seed(1)), 512
    matrix = 2.0 * torch.eye(columns)
    matrix[0, 0] = -0.5  # the last entry that the factorisation from behind reaches
    matrix[1, 300] = matrix[300, 1] = 0.25
    stats = InputStats.from_hessian(matrix, columns)
    tried = gptq.solve(weight, stats, INT4, damp=0.01, route=route)
    assert tried.damp > 0.2
    at_once = gptq.solve(weight, stats, INT4, damp=tried.damp, route=route)
    assert torch.equal(tried.quantized.codes, at_once.quantized.codes)
    assert tried.loss == at_once.loss


def test_no_damp_helps_a_matrix_that_is_no_hessian():
    stats = InputStats.from_hessian(-torch.eye(96), 96)
    with pytest.raises(CalibrationError, match="not even with damp 1"):
        gptq.solve(problem()[0], stats, INT4)


@pytest.mark.parametrize("route", ["inverse", "substitution"])
def test_a_rank_of_one(route):
    weight, _ = problem()
    stats = InputStats(96).add(torch.ones(500, 96))
    solution = gptq.solve(weight, stats, INT4, route=route)
    nearest = damage(weight, rtn.quantize(weight, INT4), stats)
    assert damage(weight, solution.quantized, stats) < 0.1 * nearest


def test_all_zero_rows_groups_and_inputs():
    weight, x = problem()
    weight[3] = 0
    weight[:, 16:32] = 0
    solution = gptq.solve(weight, InputStats(96).add(x), INT4)
    assert bool(torch.isfinite(solution.quantized.dequantize()).all())
    assert not bool(solution.quantized.dequantize()[3].any())
    with pytest.raises(CalibrationError, match="all inputs of 5 tokens were 0"):
        gptq.solve(weight, InputStats(96).add(torch.zeros(5, 96)), INT4)
    with pytest.raises(CalibrationError, match="0 calibration tokens"):
        gptq.solve(weight, InputStats(96), INT4)


def test_a_group_without_a_negative_weight_uses_its_whole_range():
    weight, x = problem()
    weight = weight.abs()
    stats = InputStats(96).add(x)
    quantized = gptq.quantize(weight, stats, INT4, scale_dtype=torch.float32)
    # Half of absmax / 7.5, which clips the upper half, is what AutoGPTQ's grid would be.
    assert bool((quantized.scale[:, 0] * 7.5 >= weight[:, :16].amax(dim=1) * 0.999).all())


def test_nothing_given_is_changed():
    weight, x = problem()
    stats = InputStats(96).add(x)
    before, hessian = weight.clone(), stats.hessian()
    gptq.solve(weight, stats, INT4, act_order=True)
    assert torch.equal(weight, before) and torch.equal(stats.hessian(), hessian)


def test_half_precision_and_transposed_weights():
    weight, x = problem()
    stats = InputStats(96).add(x)
    half = weight.to(torch.bfloat16)
    assert torch.equal(
        gptq.quantize(half, stats, INT4).codes, gptq.quantize(half.float(), stats, INT4).codes
    )
    turned = weight.T.contiguous().T
    assert torch.equal(
        gptq.quantize(turned, stats, INT4).codes, gptq.quantize(weight, stats, INT4).codes
    )


def test_refusals():
    weight, x = problem()
    stats = InputStats(96).add(x)
    with pytest.raises(GroupSizeError, match="group size 36 does not divide the last axis, 96"):
        gptq.solve(weight, stats, QuantScheme(4, granularity="group", group_size=36))
    with pytest.raises(ShapeError, match="inputs of 96 features"):
        gptq.solve(weight[:, :48], stats, INT4)
    with pytest.raises(SchemeError, match="int8"):
        gptq.solve(torch.zeros(2, 96, dtype=torch.int8), stats, INT4)
    with pytest.raises(SchemeError, match="token"):
        gptq.solve(weight, stats, QuantScheme(4, granularity="token"))
    with pytest.raises(SchemeError, match="act_order as well"):
        gptq.solve(weight, stats, INT4, act_order=True, group_aware=True)
    with pytest.raises(SchemeError, match="granularity 'channel'"):
        gptq.solve(weight, stats, QuantScheme(4), group_aware=True)
    for bad in ({"damp": -0.1}, {"damp": 2.0}, {"block_size": 0}):
        with pytest.raises(SchemeError, match="0 <= damp <= 1, block_size >= 1"):
            gptq.solve(weight, stats, INT4, **bad)
    with pytest.raises(SchemeError, match="static_groups needs groups"):
        gptq.solve(weight, stats, QuantScheme(4), static_groups=True)
    weight[1, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\(1, 2\) = nan"):
        gptq.solve(weight, stats, INT4)
