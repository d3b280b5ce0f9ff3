"""GPTQ: round one column, and let the columns that are left repair the error.

For a weight W [out, in] and inputs x, the damage is tr(D H Dᵀ) with D = W - Q and H = (2/N) Σ x xᵀ
(`labkit.quantize.hessian`). Round-to-nearest makes D small; GPTQ makes D x small. Rounding column j
to q_j and choosing the rest of the row as well as possible has a closed form (Optimal Brain
Surgeon): with U the upper triangular factor of H⁻¹ = Uᵀ U,

    err_j = (w_j - q_j) / U_jj            w_k ← w_k - err_j U_jk   for all k > j

and the damage grows by exactly err_j². Every row does so by itself, with the same U. Source:
Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from labkit.core.errors import CalibrationError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize.gptq_checks import check, note_of
from labkit.quantize.gptq_grid import Grid
from labkit.quantize.gptq_order import by_group_importance, by_importance, inverse
from labkit.quantize.gptq_repair import ByInverse, BySubstitution, damped
from labkit.quantize.hessian import InputStats


@dataclass(frozen=True)
class GptqSolution:
    """What `solve` found, and how.

    Attributes:
        quantized: codes, scales, zero-points, and g_idx where act_order scattered the groups.
        damp: the damping that was used, as a fraction of mean(diag(H)).
        dead_columns: inputs that were always 0; their weights became 0.
        loss: tr(D H Dᵀ), twice the mean over tokens of the squared output error, summed over rows.
        tokens: how many calibration tokens H was made from.
        note: what is worth reporting: damping that was raised, tokens fewer than columns.
    """

    quantized: QuantizedTensor
    damp: float
    dead_columns: int
    loss: float
    tokens: int
    note: str = ""


def quantize(
    weight: torch.Tensor, stats: InputStats, scheme: QuantScheme, **settings
) -> QuantizedTensor:
    """Return the QuantizedTensor of `solve` alone; the settings are those of `solve`."""
    return solve(weight, stats, scheme, **settings).quantized


def solve(
    weight: torch.Tensor,
    stats: InputStats,
    scheme: QuantScheme,
    *,
    damp: float = 0.01,
    block_size: int = 128,
    act_order: bool = False,
    static_groups: bool = False,
    group_aware: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    route: Literal["substitution", "inverse"] = "substitution",
    loop: Literal["numba", "plain"] = "numba",
) -> GptqSolution:
    """Quantize ``weight`` ([out, in], floating point) so that its outputs change least.

    Args:
        stats: the layer's inputs. Fewer tokens than columns are allowed, and noted.
        scheme: granularity "channel", "group" or "tensor".
        damp: this fraction of mean(diag(H)) is added to the diagonal; it is doubled until H can be
            factored, and the solution says so.
        block_size: columns whose errors are passed on to the rest of the row in one product.
        act_order: most important columns first; groups are then scattered (g_idx).
        static_groups: groups and their scales are fixed before anything moves, so that act_order
            needs no g_idx.
        group_aware: reorder inside of groups, and whole groups (`gptq_order`); no g_idx.
        scale_dtype: what scales are rounded to, before codes are chosen for them.
        route: how errors are passed on (`labkit.quantize.gptq_repair`): without inverting H, or by
            the three factorisations of the paper's code and AutoGPTQ. The two differ by the
            rounding of float32 alone.
        loop: the compiled inner loop or the plain one: the same bits. A weight that is not on the
            CPU always takes the plain one.

    A group's scale is fitted when its first column is reached. As in AutoGPTQ, it then sees the
    errors of all *blocks* before, not of the columns before it in its own block: with groups
    smaller than the block those weights are slightly stale. (Marlin's variant fits on the current
    ones; ``block_size=group_size`` does it here.) Dead columns are treated as AutoGPTQ does: weight
    0, and 1 on the diagonal of H. It differs where AutoGPTQ clips half of the range: in a symmetric
    group without a negative weight.

    Raises:
        NonFiniteError: the weight, or H, holds NaN or infinity.
        CalibrationError: no tokens, all inputs 0, or an H that no damping up to 1 makes definite.
        GroupSizeError: the group size does not divide in.
        SchemeError: settings that contradict each other, a weight that is not floating point.
        ShapeError: the weight is not a matrix, or not of as many columns as ``stats``.
    """
    check(weight, stats, scheme, damp, block_size, act_order, static_groups, group_aware)
    w = weight.detach().float()
    hessian = stats.hessian().to(w.device)
    rows, columns = w.shape
    grid = Grid.empty(w, scheme, scale_dtype)
    grouped = scheme.granularity == "group"
    if not grouped:
        grid.fit(w, 0)

    # A column whose input was always 0 has no say in any output: H would be singular.
    dead = hessian.diagonal() == 0
    if bool(dead.all()):
        raise CalibrationError(
            f"all inputs of {stats.tokens} tokens were 0",
            where=f"GPTQ, weight of shape {tuple(w.shape)}",
            remedy="Check the calibration text, and the layers in front of this one.",
        )
    hessian.diagonal()[dead] = 1
    if bool(dead.any()):
        w = w.clone()
        w[:, dead] = 0

    if static_groups:
        grid.fit_groups(0, columns, w)
    order = None
    if act_order:
        order = by_importance(hessian.diagonal())
    elif group_aware:
        order = by_group_importance(hessian.diagonal(), scheme.group_size or columns)
    if order is not None:
        w, hessian = w[:, order], hessian[order][:, order]
        if grouped and (static_groups or group_aware):
            grid.group = grid.group[order]

    kind = ByInverse if route == "inverse" else BySubstitution
    repair, used, added = damped(kind, w, hessian, damp)
    round_columns = round_block
    if loop == "numba" and w.device.type == "cpu":
        round_columns = round_block_compiled
    codes = torch.empty(rows, columns, dtype=scheme.code_dtype, device=w.device)
    damage = distance = 0.0
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        fitting = grouped and not static_groups
        block = repair.corrected(start, grid.reach(start, stop) if fitting else stop)
        if fitting:
            grid.fit_groups(start, stop, block)
        rounded = block[:, : stop - start].contiguous()
        factor = repair.factor(start, stop)
        errors = round_columns(rounded, factor, grid, start, codes[:, start:stop])
        change = w[:, start:stop] - rounded
        repair.pass_on(start, change, errors)
        damage += float(torch.linalg.vector_norm(errors)) ** 2
        distance += float(torch.linalg.vector_norm(change)) ** 2
    # Σ err² is tr(D (H + added I) Dᵀ): take off what damping added.
    loss = max(0.0, damage - added * distance)

    g_idx = None
    if order is not None:
        codes = codes[:, inverse(order)]
        if grouped and act_order and not static_groups:
            g_idx = grid.group[inverse(order)].to(torch.int32)
    scale, zeros = grid.stored()
    quantized = QuantizedTensor(codes, scale, zeros, scheme, g_idx)
    note = note_of(damp, used, stats)
    return GptqSolution(quantized, used, int(dead.sum()), loss, stats.tokens, note)


def round_block(
    weight: torch.Tensor, factor: torch.Tensor, grid: Grid, start: int, codes: torch.Tensor
) -> torch.Tensor:
    """Round a block of columns one by one; return their errors err_j, float32 [out, block].

    This is the inner loop of Algorithm 1, and what `labkit.quantize.gptq_numba` is tested against.

    Args:
        weight: float32 [out, block], corrected for all columns before the block, which begins at
            column ``start`` of the order of rounding; becomes what its codes stand for.
        factor: float32 [block, block], the block of U.
        codes: int8 or uint8 [out, block]; written.
    """
    errors = torch.empty_like(weight)
    for j in range(weight.shape[1]):
        group = grid.group[start + j]
        scale, zero = grid.scale[:, group], grid.zero[:, group]
        w = weight[:, j].clone()
        # 1. The nearest code, and what it stands for.
        code = ((w / scale).round() + zero).clamp(grid.scheme.qmin, grid.scheme.qmax)
        rounded = (code - zero) * scale
        # 2. The error, in units of how much this column can still be made up for.
        error = (w - rounded) / factor[j, j]
        # 3. All later columns of the block move to make up for it.
        weight[:, j + 1 :] -= error.unsqueeze(1) * factor[j, j + 1 :]
        weight[:, j], codes[:, j], errors[:, j] = rounded, code, error
    return errors


def round_block_compiled(
    weight: torch.Tensor, factor: torch.Tensor, grid: Grid, start: int, codes: torch.Tensor
) -> torch.Tensor:
    """`round_block` by way of Numba: the same arguments, the same bits; tensors on the CPU."""
    import numpy as np

    from labkit.quantize import gptq_numba

    errors = torch.empty_like(weight)
    gptq_numba.round_block(
        weight.numpy(),
        factor.numpy(),
        grid.scale.numpy(),
        grid.zero.numpy(),
        grid.group[start : start + weight.shape[1]].numpy(),
        np.float32(grid.scheme.qmin),
        np.float32(grid.scheme.qmax),
        codes.numpy(),
        errors.numpy(),
        threads=torch.get_num_threads(),
    )
    return errors
