"""In which order GPTQ rounds the columns.

The last columns have nobody left to repair their error, so the important ones, those with a large
diagonal of H (large inputs), should come first. Three orders:

* as stored;
* act_order: by diag(H), descending (AutoGPTQ's ``desc_act``). Groups are then cut from the sorted
  columns, so every column must remember its group (g_idx), and a kernel fetches scales at random;
* group-aware: columns sorted inside of their group, and whole groups sorted by their largest
  column. Each group keeps its columns, hence no g_idx, and most of the gain. Source: Gafni et al.
  2025, "Dual Precision Quantization for Efficient and Accurate Deep Neural Networks Inference"
  (GPTQModel's ``act_group_aware``).
"""

from __future__ import annotations

import torch


def by_importance(diagonal: torch.Tensor) -> torch.Tensor:
    """Return the columns, most important first: int64 [in]; ties keep their order.

    ``order[i]`` is the column that is rounded as the i-th.
    """
    return torch.argsort(diagonal, descending=True, stable=True)


def by_group_importance(diagonal: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return the columns group by group, most important first in each: int64 [in].

    ``group_size`` divides in.
    """
    groups = diagonal.reshape(-1, group_size)
    values, inside = torch.sort(groups, dim=1, descending=True, stable=True)
    first = torch.argsort(values[:, 0], descending=True, stable=True)
    starts = torch.arange(groups.shape[0], device=diagonal.device).unsqueeze(1) * group_size
    return (inside + starts)[first].reshape(-1)


def inverse(order: torch.Tensor) -> torch.Tensor:
    """Return the permutation that undoes ``order``: ``x[:, order][:, inverse(order)]`` is x."""
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    return back
