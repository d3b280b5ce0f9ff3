"""Pictures of chapter 03: a matrix with its maxima, who shares a scale, a model by layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor

from labkit.core.granularity import expand, scale_shape
from labkit.core.scheme import QuantScheme
from labkit.course import figures

CELLS = 64
T = TypeVar("T")


def pooled(matrix: Tensor, reduce: Callable[..., Tensor], cells: int = CELLS) -> np.ndarray:
    """`matrix` [rows, columns] on at most cells x cells squares, each reduced to one number."""
    rows, columns = (np.linspace(0, n, min(n, cells) + 1).astype(int) for n in matrix.shape)
    squares = [
        [reduce(matrix[a:b, c:d], dim=(0, 1)) for c, d in pairwise(columns)]
        for a, b in pairwise(rows)
    ]
    return np.array([[float(square) for square in line] for line in squares])


def weight_with_maxima(weight: Tensor, title: str) -> Figure:
    """Heat map of |w|, the largest |w| of each column above it, of each row beside it."""
    fig, ((top, corner), (heat, side)) = figures.new(
        2, 2, size=(6.6, 4.2), width_ratios=(4, 1.3), height_ratios=(1.1, 4)
    )
    size = weight.abs()
    rows, columns = weight.shape
    picture = heat.imshow(
        pooled(size, torch.amax),
        cmap=figures.HEAT,
        aspect="auto",
        vmin=0,
        extent=(0, columns, rows, 0),
    )
    heat.set(xlabel="input channel (column)", ylabel="output channel (row)")
    heat.grid(False)
    fig.colorbar(picture, ax=corner, label="largest |w|", fraction=0.9, aspect=6)
    corner.axis("off")
    top.plot(range(columns), size.amax(dim=0), linewidth=0.6)
    top.set(xlim=(0, columns), ylim=(0, None), ylabel="max |w|", title=title, xticklabels=[])
    side.plot(size.amax(dim=1), range(rows), linewidth=0.6, color=figures.PALETTE[1])
    side.set(ylim=(rows, 0), xlim=(0, None), xlabel="max |w|", yticklabels=[])
    return fig


def sharing_maps(rows: int = 6, columns: int = 16, group: int = 4) -> Figure:
    """Small matrices whose squares have one colour where they share one scale."""
    schemes = {
        "weight, per tensor": QuantScheme(8, granularity="tensor"),
        "weight, per output channel": QuantScheme(8, granularity="channel"),
        f"weight, groups of {group}": QuantScheme(8, granularity="group", group_size=group),
        "activation, per token": QuantScheme(8, granularity="token"),
    }
    fig, axes = figures.new(2, 2, size=(7.6, 4.2))
    for ax, (name, scheme) in zip(axes.flat, schemes.items(), strict=True):
        shape = scale_shape((rows, columns), scheme)
        blocks = torch.arange(int(np.prod(shape))).reshape(shape)
        owner = expand(blocks, scheme, (rows, columns)).expand(rows, columns)
        # Neighbours get colours far apart; the order of the colours means nothing.
        ax.imshow(((owner * 7) % 16).numpy(), cmap="tab20", vmin=0, vmax=19, aspect="equal")
        ax.set(title=f"{name}: {blocks.numel()} scale{'s' * (blocks.numel() > 1)}")
        ax.set_xticks(np.arange(columns + 1) - 0.5, labels=[])
        ax.set_yticks(np.arange(rows + 1) - 0.5, labels=[])
        ax.grid(color="white", linewidth=1.2)
        ax.tick_params(length=0)
        token = scheme.granularity == "token"
        ax.set(xlabel="feature" if token else "in", ylabel="token" if token else "out")
    return fig


def plain_log(ax: Axes, label: str) -> None:
    """Make the y axis logarithmic with ticks at 1, 2, 5, 10, written out as numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel(label)


def by_block(values: dict[str, float]) -> tuple[list[str], list[str], np.ndarray]:
    """Kinds, blocks and a table [kinds, blocks] of values given by a layer's full name.

    "model.layers.3.mlp.up_proj" is kind "mlp.up_proj" of block "3"; what is missing is NaN.
    """
    places = {name: _place(name) for name in values}
    kinds = list(dict.fromkeys(kind for kind, _ in places.values()))
    blocks = sorted({block for _, block in places.values()}, key=int)
    table = np.full((len(kinds), len(blocks)), np.nan)
    for name, (kind, block) in places.items():
        table[kinds.index(kind), blocks.index(block)] = values[name]
    return kinds, blocks, table


def _place(name: str) -> tuple[str, str]:
    """Kind and block of a layer: what stands after and at the first number in its name."""
    parts = name.split(".")
    index = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[index + 1 :]), parts[index]


def middle_block(values: dict[str, T]) -> dict[str, T]:
    """Those of `values`, given by a layer's full name, that belong to the middle decoder block."""
    blocks = sorted({int(_place(name)[1]) for name in values})
    middle = str(blocks[len(blocks) // 2])
    return {name: value for name, value in values.items() if _place(name)[1] == middle}


def model_maps(panels: Iterable[tuple[str, dict[str, float]]], label: str) -> Figure:
    """The whole model once for each panel (title, value by layer name), in the same colours."""
    tables = [(title, by_block(values)) for title, values in panels]
    lowest = min(float(np.nanmin(table)) for _, (_, _, table) in tables)
    highest = max(float(np.nanmax(table)) for _, (_, _, table) in tables)
    height = 1.3 + 0.32 * len(tables[0][1][0])
    fig, axes = figures.new(1, len(tables), size=(4.3 * len(tables) + 0.6, height), sharey=True)
    for ax, (title, (kinds, blocks, table)) in zip(np.atleast_1d(axes), tables, strict=True):
        picture = ax.imshow(table, cmap=figures.HEAT, vmin=lowest, vmax=highest, aspect="auto")
        ax.set_yticks(range(len(kinds)), labels=[kind.split(".")[-1] for kind in kinds])
        every = max(1, len(blocks) // 12)
        ax.set_xticks(range(0, len(blocks), every), labels=blocks[::every])
        ax.set(xlabel="block", title=title)
        ax.grid(False)
    fig.colorbar(picture, ax=axes, label=label)
    return fig
