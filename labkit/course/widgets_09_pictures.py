"""Pictures of chapter 09: roofs, rungs, the two orders of nibbles, and a block with its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.course import figures
from labkit.evaluate.roofline import Roof

_TINTS = {32: figures.PALETTE[6], 8: figures.PALETTE[2], 4: figures.PALETTE[0]}


def draw_roof(ax: Axes, roof: Roof, label: str, ends: tuple[float, float], **style: object) -> None:
    """One roof on axes with two logarithmic scales, from one intensity to another."""
    x = np.geomspace(*ends, 200)
    ax.plot(x, [roof.attainable(value) / 1e9 for value in x], label=label, **style)


def roofline(
    roofs: Mapping[str, Roof],
    points: Mapping[str, tuple[float, float]],
    ends: tuple[float, float] = (0.25, 2048),
) -> Figure:
    """Roofs as lines, and work as points (operations per byte, operations a second).

    A point's name is "what, format": what it is gives the marker, the format its colour.
    """
    fig, ax = figures.new(size=(7.6, 4.2))
    for (name, roof), line in zip(roofs.items(), ("-", "--", ":"), strict=False):
        draw_roof(ax, roof, name, ends, color="black", linestyle=line, linewidth=1.4)
    pairs = [name.split(", ") for name in points]
    kinds, formats = (list(dict.fromkeys(column)) for column in zip(*pairs, strict=True))
    for (kind, format_), (name, (intensity, rate)) in zip(pairs, points.items(), strict=True):
        marker, colour = "os^"[kinds.index(kind)], figures.PALETTE[formats.index(format_)]
        ax.plot(intensity, rate / 1e9, marker, color=colour, markersize=8, label=name)
    ax.set(xscale="log", yscale="log", xlim=ends, xlabel="operations per byte",
           ylabel="billion operations a second")  # fmt: skip
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    return fig


def ladder(rungs: Mapping[str, tuple[float, int]], floors: Mapping[str, float]) -> Figure:
    """Nanoseconds a weight, one bar a rung; dotted lines: the time to read the bytes alone.

    Args:
        rungs: name to (nanoseconds, bits a weight: 32, 8 or 4), from the top down.
        floors: label to nanoseconds.
    """
    fig, ax = figures.new(size=(8.2, 0.42 * len(rungs) + 1.3))
    names = list(rungs)
    for place, (value, bits) in enumerate(rungs.values()):
        ax.barh(place, value, color=_TINTS[bits], height=0.62)
        ax.annotate(f" {value:.3g}", (value, place), va="center", fontsize=9)
    for (label, value), line in zip(floors.items(), (":", "--"), strict=False):
        ax.axvline(value, color=figures.PALETTE[1], linestyle=line, linewidth=1.4, label=label)
    ax.set(xscale="log", xlabel="nanoseconds a weight", yticks=range(len(names)))
    ax.set_yticklabels(names)
    ax.invert_yaxis()
    lowest = min(*(value for value, _ in rungs.values()), *floors.values())
    ax.set_xlim(lowest / 2, 6 * max(value for value, _ in rungs.values()))
    ax.legend(loc="lower right", fontsize=9)
    ax.grid(axis="y", visible=False)
    return fig


def layouts(codes: int = 16) -> Figure:
    """A chunk of so many codes as bytes, in both orders, and what one AND makes of them."""
    half = codes // 2
    orders = {
        "neighbours share a byte": [(2 * j, 2 * j + 1) for j in range(half)],
        "halves share a byte": [(j, j + half) for j in range(half)],
    }
    fig, axes = figures.new(1, 2, size=(9.2, 2.9))
    for ax, (title, pairs) in zip(axes, orders.items(), strict=True):
        ax.set(xlim=(-2.1, half), ylim=(-0.2, 3.6), title=title)
        ax.set_axis_off()
        for j, (low, high) in enumerate(pairs):
            _cell(ax, j, 2.5, low, codes)
            _cell(ax, j, 1.75, high, codes)
            _cell(ax, j, 0.2, low, codes)
        for y, text in ((2.85, "low 4 bits"), (2.1, "high 4 bits"), (0.55, "byte & 15")):
            ax.text(-0.15, y, text, ha="right", va="center", fontsize=9)
        ax.text(half / 2, 1.32, "one AND, all lanes", ha="center", va="center", fontsize=9)
    return fig


def _cell(ax: Axes, x: float, y: float, number: int, codes: int) -> None:
    tint = "#cfe2f3" if number < codes // 2 else "#fce5cd"
    ax.add_patch(Rectangle((x + 0.04, y), 0.92, 0.7, facecolor=tint, edgecolor="none"))
    ax.text(x + 0.5, y + 0.35, str(number), ha="center", va="center", fontsize=9)


def programs(rows: int, columns: int, block: int, width: int) -> Figure:
    """A matrix, the blocks that programs take of it, and the places that a mask leaves out."""
    down, across = -(-rows // block), -(-columns // width)
    fig, ax = figures.new(size=(7.0, 3.4))
    for row in range(down * block):
        for column in range(across * width):
            inside = row < rows and column < columns
            tint = ("#cfe2f3", "#a9cce8")[(row // block + column // width) % 2]
            ax.add_patch(
                Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, edgecolor="none",
                          facecolor=tint if inside else "#eeeeee",
                          hatch=None if inside else "xxx", alpha=1 if inside else 0.9)
            )  # fmt: skip
    for pid in range(down):
        ax.add_patch(
            Rectangle((0, pid * block), across * width, block, fill=False, linewidth=2,
                      edgecolor=figures.PALETTE[0])
        )  # fmt: skip
        ax.text(-0.4, (pid + 0.5) * block, f"program {pid}", ha="right", va="center", fontsize=9)
    ax.set(xlim=(-4.2, across * width + 0.2), ylim=(down * block + 0.2, -0.2))
    ax.set_axis_off()
    return fig


def speedups(
    tokens: Sequence[int], measured: Sequence[float], roof: Sequence[float], crossing: float
) -> Figure:
    """How many times as fast as float32 the 4-bit product is, against tokens at a time."""
    fig, ax = figures.new(size=(7.0, 3.6))
    ax.plot(tokens, roof, linestyle="--", color="black", linewidth=1.2, label="predicted")
    ax.plot(tokens, measured, marker="o", label="measured")
    ax.axhline(1, color="#999999", linewidth=1)
    if crossing >= 1:
        ax.axvline(crossing, color=figures.PALETTE[1], linestyle=":", label="predicted crossing")
    ax.set(xscale="log", yscale="log", xlabel="tokens at a time",
           ylabel="times as fast as float32")  # fmt: skip
    ax.set_xticks(tokens, [str(count) for count in tokens], minor=False)
    ax.minorticks_off()
    ticks = [
        t for t in (0.25, 0.5, 1, 2, 4, 8, 16) if min(measured) / 2 < t < 2 * max(*measured, 8)
    ]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.legend()
    return fig
