"""The course's signature picture: quality against true bits per weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.evaluate.score import ScoreRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One colour and marker for each granularity (Okabe and Ito's palette, safe for colour blindness).
_STYLES = {
    "tensor": ("#D55E00", "s"),
    "channel": ("#0072B2", "o"),
    "group": ("#009E73", "^"),
}


def _granularity(row: ScoreRow) -> str | None:
    return next((name for name in _STYLES if name in row.method.split()), None)


def _draw(axes: Axes, rows: list[ScoreRow], value) -> None:
    for name, (colour, marker) in _STYLES.items():
        # Symmetric rows alone make a line; `--all` adds asymmetric ones as open markers.
        line = [row for row in rows if _granularity(row) == name and "asym" not in row.method]
        line.sort(key=lambda row: row.bits_per_weight)
        if line:
            places = [row.bits_per_weight for row in line]
            axes.plot(places, [value(row) for row in line], marker=marker, color=colour, label=name)
        loose = [row for row in rows if _granularity(row) == name and "asym" in row.method]
        if loose:
            axes.plot(
                [row.bits_per_weight for row in loose],
                [value(row) for row in loose],
                marker=marker,
                color=colour,
                linestyle="none",
                fillstyle="none",
                label=f"{name}, asymmetric",
            )
    axes.axhline(value(rows[0]), color="#444444", linestyle="--", linewidth=1, label="FP32")
    axes.set_xlabel("bits per weight, metadata counted")
    axes.grid(alpha=0.25)


def score_chart(rows: list[ScoreRow]) -> Figure:
    """Perplexity (log scale) and mean task accuracy against bits per weight. FP32 is row 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, rows, lambda row: sum(row.perplexity.values()) / len(row.perplexity))
    left.set_yscale("log")
    left.set_ylabel("perplexity, mean of the two domains")
    _draw(right, rows, lambda row: 100 * sum(row.tasks.values()) / len(row.tasks))
    right.set_ylabel("task accuracy in %, mean of the four")
    right.set_ylim(-3, 103)
    right.legend(title="one scale per", loc="lower right")
    return figure
