"""The course's signature picture: quality against true bits per weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.evaluate.score_row import ScoreRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A line for each family of rows (Okabe and Ito's palette, safe for colour blindness). The first
# family that fits a row's label takes it; asymmetric rows of round-to-nearest are open markers.
_FAMILIES = {
    "RTN tensor": ("#D55E00", "s", "RTN int", "sym tensor"),
    "RTN channel": ("#0072B2", "o", "RTN int", "sym channel"),
    "RTN group": ("#009E73", "^", "RTN int", "sym group"),
    "RTN clip": ("#009E73", "1", "RTN clip", ""),
    "AWQ": ("#CC79A7", "D", "AWQ", ""),
    "GPTQ act-order": ("#E69F00", "P", "GPTQ act-order", ""),
    "GPTQ": ("#000000", "v", "GPTQ", ""),
    "HQQ": ("#56B4E9", "X", "HQQ", ""),
    "NF4, FP4": ("#7F3C8D", "*", ("NF4", "FP4"), ""),
    "GGUF": ("#B8860B", "d", "GGUF", ""),
    "LLM.int8()": ("#8C564B", "p", "LLM.int8", ""),
    "W8A8": ("#666666", "h", ("RTN W8A8", "SmoothQuant"), ""),
}

# Perplexities this many times FP32's and more are not told apart.
_FAR = 5


def _family(row: ScoreRow) -> str | None:
    for name, (_, _, start, part) in _FAMILIES.items():
        if row.method.startswith(start) and part in row.method:
            return name
    return None


def _draw(axes: Axes, rows: list[ScoreRow], value) -> None:
    for name, (colour, marker, *_) in _FAMILIES.items():
        members = [row for row in rows if _family(row) == name]
        for open_marker in (False, True):
            line = [row for row in members if _is_loose(row) == open_marker]
            line.sort(key=lambda row: row.bits_per_weight)
            if line:
                axes.plot(
                    [row.bits_per_weight for row in line],
                    [value(row) for row in line],
                    marker=marker,
                    color=colour,
                    linestyle=":" if open_marker else "-",
                    fillstyle="none" if open_marker else "full",
                    label=f"{name}, asymmetric" if open_marker else name,
                )
    axes.axhline(value(rows[0]), color="#444444", linestyle="--", linewidth=1, label="FP32")
    axes.set_xlabel("bits per weight, metadata counted")
    axes.grid(alpha=0.25)


def _mean_perplexity(row: ScoreRow) -> float:
    return sum(row.perplexity.values()) / len(row.perplexity)


def _cut_off_at(axes: Axes, top: float, rows: list[ScoreRow]) -> None:
    """Ruined models would press all the others into one line: say how many lie above."""
    above = sum(_mean_perplexity(row) > top for row in rows)
    if above:
        axes.set_ylim(top=top)
        axes.annotate(
            f"{above} row{'s' * (above > 1)} above {top:.0f}",
            (0.98, 0.96),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=8,
        )


def _is_loose(row: ScoreRow) -> bool:
    return row.method.startswith("RTN int") and "asym" in row.method


def score_chart(rows: list[ScoreRow]) -> Figure:
    """Perplexity (log scale) and mean task accuracy against bits per weight. FP32 is row 0."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, rows, _mean_perplexity)
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("perplexity, mean of the two domains")
    _cut_off_at(left, _FAR * _mean_perplexity(rows[0]), rows)
    _draw(right, rows, lambda row: 100 * sum(row.tasks.values()) / len(row.tasks))
    right.set_ylabel("task accuracy in %, mean of the four")
    right.set_ylim(-3, 103)
    right.legend(loc="lower right", fontsize=8)
    return figure
