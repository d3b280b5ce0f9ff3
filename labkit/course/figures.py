"""Figures of the course: one plain style, and a text for whoever cannot see the picture.

A figure is shown as an HTML `<img>` with its alt text, because JupyterLab draws a bare PNG output
without one. The same text is the output's plain form, which nbval compares: the pixels may differ
between machines, the sentence that says what they show may not.

    fig, ax = figures.new()
    ax.plot(bits, error)
    ax.set(xlabel="bits per weight", ylabel="mean squared error")
    figures.show(fig, alt=f"The error falls from {error[0]:.2g} to {error[-1]:.2g}.")
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of lines in order: Okabe and Ito's set, told apart with any colour vision."""

HEAT = "cividis"
"""Colour map of amounts: even in lightness, the same to readers without red or green cones."""

SIGNED = "PuOr"
"""Colour map of signed amounts: orange, white at zero, purple."""

DPI = 100
FEWEST_ALT_WORDS = 4

STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "image.cmap": HEAT,
    "image.interpolation": "nearest",
}


def new(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **subplots: Any
) -> tuple[Figure, Any]:
    """A figure in the style of the course, and its axes as `plt.subplots` returns them.

    The style becomes matplotlib's default in this process: titles, lines and legends are drawn
    after this call, and take theirs from there.

    Args:
        rows, columns: the grid of axes.
        size: width and height in inches; 6.4 by 3.4 for one row if not given.
        subplots: passed on to `Figure.subplots` (sharex, width_ratios, ...).
    """
    matplotlib.rcParams.update(STYLE)
    fig = Figure(figsize=size or (6.4, 3.4 * rows), dpi=DPI, layout="constrained")
    return fig, fig.subplots(rows, columns, **subplots)


def to_html(fig: Figure, alt: str) -> str:
    """The figure as one `<img>` element with the picture inside it; for an `ipywidgets.HTML`.

    Raises:
        ValueError: `alt` says less than four words.
    """
    alt = _checked(alt)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    picture = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}">'


def show(fig: Figure, alt: str) -> None:
    """Show the figure below the cell, with `alt` for those who cannot see it.

    Say what the picture shows, not that it is one: "Error halves with every bit, from 0.1 at
    2 bits to 0.002 at 8." Put computed numbers in it, rounded.

    Raises:
        ValueError: `alt` says less than four words.
    """
    picture = to_html(fig, alt)
    display({"text/html": picture, "text/plain": f"Figure: {_checked(alt)}"}, raw=True)
    plt.close(fig)  # a figure of pyplot would be drawn once more at the end of the cell


def show_widget(widget: Any, alt: str) -> None:
    """Show an ipywidget. Where it cannot be drawn, as on a web page or before the notebook is
    trusted, its first picture stands for it, or else `alt`.

    Raises:
        ValueError: `alt` says less than four words.
    """
    bundle = dict(widget._repr_mimebundle_())
    bundle["text/plain"] = f"Widget: {_checked(alt)}"
    if picture := _first_picture(widget):
        bundle["text/html"] = picture
    display(bundle, raw=True)


def _first_picture(widget: Any) -> str:
    """The first `to_html` picture in a widget and its children, or an empty text."""
    value = getattr(widget, "value", "")
    if isinstance(value, str) and value.startswith("<img "):
        return value
    found = (_first_picture(child) for child in getattr(widget, "children", ()))
    return next(filter(None, found), "")


def levels(ax: Any, positions: Sequence[float], colour: str = PALETTE[1]) -> None:
    """Mark the values that a format can represent as ticks along the bottom of `ax`."""
    ax.plot(
        positions,
        [0.0] * len(positions),
        "|",
        color=colour,
        markersize=12,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
    )


def _checked(alt: str) -> str:
    alt = " ".join(alt.split())
    if len(alt.split()) < FEWEST_ALT_WORDS:
        raise ValueError(f"alt text {alt!r}: say in a sentence what the picture shows")
    return alt
