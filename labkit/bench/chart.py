"""A bar a row: how many times as good as the peer ours is, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit.core.errors import FormatError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from labkit.bench.harness import Row

# Okabe and Ito's palette, safe for colour blindness: better than the peer, and worse.
_BETTER, _WORSE = "#0072B2", "#D55E00"


def ratio_chart(rows: Sequence[Row], group: str, ratio_means: str) -> Figure:
    """Bars to the right of 1 are rows in which ours is better; the peer is named in each.

    Raises FormatError when there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    drawn = [row for row in rows if row.ratio > 0]
    if not drawn:
        raise FormatError("no rows to draw", where=f"labkit bench {group}")
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(drawn):
        # Bars begin at 1: on a logarithmic axis their lengths say how far the two are apart.
        axes.barh(place, row.ratio - 1, left=1, color=_BETTER if row.ratio >= 1 else _WORSE)
        axes.annotate(
            f" {row.ratio:.2f} ",
            (row.ratio, place),
            ha="left" if row.ratio >= 1 else "right",
            va="center",
            fontsize=8,
        )
    labels = [f"{row.what}  |  {row.peer}" for row in drawn]
    axes.set_yticks(range(len(drawn)), labels=labels, fontsize=8)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xscale("log")
    ratios = [row.ratio for row in drawn]
    axes.set_xlim(min(0.7, 0.7 * min(ratios)), max(1.4, 1.4 * max(ratios)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_xlabel(ratio_means)
    axes.set_title(f"labkit bench {group}", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    return figure
