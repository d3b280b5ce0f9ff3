"""Pictures of notebook 01 that take more than a cell: bits, every code, a whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from labkit.core.dtypes import FloatFormat, all_values, fields, get_format
from labkit.course import figures
from labkit.course.widgets_01_bits import FIELD_COLOURS


def bit_layouts(names: Sequence[str]) -> Figure:
    """A row a format, a box a bit, coloured by field; 32 bits wide."""
    fig, ax = figures.new(size=(7.2, 0.4 * len(names) + 0.6))
    for row, name in enumerate(names):
        column = 0
        for field, bits in zip(FIELD_COLOURS, fields(0, name), strict=True):
            ax.barh(
                [row] * len(bits), 0.92, left=range(column, column + len(bits)),
                color=FIELD_COLOURS[field], height=0.72,
            )  # fmt: skip
            column += len(bits)
        ax.text(column + 0.4, row, _range_of(name), va="center", fontsize=9)
    ax.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 44), xlabel="bit, from the left")
    ax.set_xticks([0, 8, 16, 24, 32])
    ax.grid(False)
    ax.invert_yaxis()
    for position, (field, colour) in enumerate(FIELD_COLOURS.items()):
        ax.text(
            0.42 + 0.13 * position, 0.06, field, color="white", backgroundcolor=colour,
            transform=ax.transAxes, fontsize=9,
        )  # fmt: skip
    return fig


def _range_of(name: str) -> str:
    fmt = get_format(name)
    if isinstance(fmt, FloatFormat):
        return f"{fmt.min_subnormal:.3g} to {fmt.max:.5g}"
    return f"{fmt.min:g} to {fmt.max:g}"


def model_map(quality: torch.Tensor, columns: Sequence[str], rows: Sequence[str]) -> Figure:
    """Signal-to-noise ratio in dB of every weight matrix [rows] in every format [columns].

    `rows` names the matrices; a row whose name is empty goes without a label.
    """
    fig, ax = figures.new(size=(8.0, 5.0))
    image = ax.imshow(quality.numpy(), aspect="auto", vmin=0, vmax=60, cmap=figures.HEAT)
    labelled = {row: name for row, name in enumerate(rows) if name}
    ax.set(xticks=range(len(columns)), xticklabels=columns, ylabel="weight matrices")
    ax.set(yticks=list(labelled), yticklabels=list(labelled.values()))
    ax.grid(False)
    ax.tick_params(axis="x", labelsize=8.5)
    fig.colorbar(image, ax=ax, label="signal to rounding noise (dB)")
    return fig


def code_table(name: str) -> Figure:
    """The 128 codes of an 8-bit float whose sign bit is 0: a row for each upper half."""
    values = all_values(name)[:128]
    size = values.clamp(min=2.0**-18).log2().nan_to_num(nan=0.0, posinf=16.0)
    fig, ax = figures.new(size=(8.2, 3.2))
    ax.imshow(size.reshape(8, 16).numpy(), aspect="auto", cmap=figures.HEAT, alpha=0.45)
    for code, value in enumerate(values.tolist()):
        ax.text(
            code % 16, code // 16, _short(value), ha="center", va="center", fontsize=7.5,
            color="black" if math.isfinite(value) else "#B00020",
        )  # fmt: skip
    digits = [f"{digit:X}" for digit in range(16)]
    ax.set(xticks=range(16), xticklabels=digits, yticks=range(8), yticklabels=digits[:8])
    ax.set(xlabel="lower four bits of the code (hexadecimal)", ylabel="upper four bits")
    ax.grid(False)
    return fig


def _short(value: float) -> str:
    """At most seven characters."""
    if math.isnan(value):
        return "NaN"
    if value == 0 or value >= 1:
        return f"{value:g}"
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")
