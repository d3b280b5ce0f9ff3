"""Notebook 02: a slider cuts the range of real values; rounding and clipping trade places."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from labkit.course import figures
from labkit.course.widgets_02_error import ErrorSplit, clip_curve

RATIOS = tuple(k / 50 for k in range(2, 51))
MOST_VALUES = 400_000
BINS = 120


class ClipExplorer(widgets.VBox):
    """A slider for the share of the range that is kept; `picture` holds the drawing.

    Args:
        values: what is quantized, any shape. Of a tensor larger than `MOST_VALUES` evenly spaced
            elements stand for all, with its least and its greatest.
        unit: what the values are, for the axis.
    """

    def __init__(self, values: torch.Tensor, unit: str) -> None:
        flat = values.detach().float().flatten().cpu()
        stride = -(-flat.numel() // MOST_VALUES)
        ends = [flat.min().reshape(1), flat.max().reshape(1)] if stride > 1 else []
        self.values = torch.cat([flat[::stride], *ends])
        self.unit = unit
        self._curves: dict[tuple[int, bool], list[ErrorSplit]] = {}
        self.keep = widgets.FloatSlider(1.0, min=0.04, max=1.0, step=0.02, description="keep")
        self.keep.layout = widgets.Layout(width="30em")
        self.bits = widgets.Dropdown(options=[2, 3, 4, 6, 8], value=4, description="bits")
        self.kind = widgets.ToggleButtons(options=["asymmetric", "symmetric"])
        self.picture = widgets.HTML()
        for control in (self.keep, self.bits, self.kind):
            control.observe(self._redraw, names="value")
        super().__init__([self.keep, widgets.HBox([self.bits, self.kind]), self.picture])
        self._redraw()

    @property
    def curve(self) -> list[ErrorSplit]:
        """The error for each of `RATIOS`, with the bits and the kind of grid now chosen."""
        chosen = self.bits.value, self.kind.value == "symmetric"
        if chosen not in self._curves:
            self._curves[chosen] = clip_curve(self.values, RATIOS, *chosen)
        return self._curves[chosen]

    @property
    def error(self) -> ErrorSplit:
        """The error where the slider stands."""
        nearest = min(range(len(RATIOS)), key=lambda i: abs(RATIOS[i] - self.keep.value))
        return self.curve[nearest]

    @property
    def best(self) -> float:
        """The ratio with the least error."""
        return min(zip(RATIOS, self.curve, strict=True), key=lambda pair: pair[1].total)[0]

    def _redraw(self, change: dict[str, Any] | None = None) -> None:
        error = self.error
        alt = (
            f"Keeping {self.keep.value:.0%} of the range at {self.bits.value} bits: rounding "
            f"error {error.rounding:.2g}, clipping error {error.clipping:.2g}."
        )
        self.picture.value = figures.to_html(self._draw(error), alt)

    def _draw(self, error: ErrorSplit) -> Figure:
        fig, (top, bottom) = figures.new(2, 1, size=(7.2, 5.2))
        grid = error.grid
        top.hist(self.values.numpy(), bins=BINS, color=figures.PALETTE[5], log=True)
        top.axvspan(grid.values[0], grid.values[-1], color=figures.PALETTE[4], alpha=0.15)
        figures.levels(top, grid.values)
        top.set(xlabel=self.unit, ylabel="values in a bin")
        top.set_title(f"scale {grid.scale:.3g}    zero-point {grid.zero_point}")
        draw_curve(bottom, RATIOS, self.curve)
        bottom.axvline(self.keep.value, color="black", linewidth=1)
        bottom.set_title(
            f"rounding {error.rounding:.2g} + clipping {error.clipping:.2g} = {error.total:.2g}"
        )
        return fig


def draw_curve(ax: Any, ratios: tuple[float, ...], curve: list[ErrorSplit]) -> None:
    """Rounding, clipping and total error against the share of the range that is kept."""
    total = [split.total for split in curve]
    best = min(range(len(total)), key=total.__getitem__)
    floor = min(total) / 30
    parts = (
        ("total", total, figures.PALETTE[6], "-"),
        ("rounding", [split.rounding for split in curve], figures.PALETTE[0], "--"),
        ("clipping", [split.clipping for split in curve], figures.PALETTE[1], ":"),
    )
    for name, errors, colour, style in parts:
        ax.plot(ratios, errors, style, color=colour, label=name)
    ax.plot(ratios[best], total[best], "o", color=figures.PALETTE[2], markersize=8, label="least")
    ax.set(yscale="log", ylim=(floor, max(total) * 2))
    ax.set(xlabel="share of the range that is kept", ylabel="mean squared error")
    ax.legend(ncols=4, fontsize=8)
