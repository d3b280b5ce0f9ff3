"""Notebook 02: two sliders move a range; the grid, scale, zero-point and error follow."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from labkit.course import figures
from labkit.course.widgets_02_error import Grid, grid_of, split_error

SEEN = (-3.0, 7.0)
"""The part of the number line that is drawn."""

DATA = torch.tensor([-0.9, -0.35, 0.0, 0.3, 0.55, 1.1, 1.6, 2.4, 3.1, 3.7, 5.5])
"""A handful of values, most of them positive, with one that is far from the rest."""

MOST_LABELS = 16


class GridExplorer(widgets.VBox):
    """Sliders for the ends of the range, bits, and kind of grid; `picture` holds the drawing."""

    def __init__(self) -> None:
        width = widgets.Layout(width="24em")
        self.upper = widgets.FloatSlider(4.0, min=0.0, max=6.0, step=0.25, description="upper end")
        self.lower = widgets.FloatSlider(-1.0, min=-3.0, max=0, step=0.25, description="lower end")
        self.bits = widgets.Dropdown(options=[2, 3, 4, 8], value=3, description="bits")
        self.kind = widgets.ToggleButtons(options=["asymmetric", "symmetric"])
        self.upper.layout = self.lower.layout = width
        self.picture = widgets.HTML()
        for control in (self.upper, self.lower, self.bits, self.kind):
            control.observe(self._redraw, names="value")
        sliders = widgets.VBox([self.upper, self.lower])
        choices = widgets.VBox([self.bits, self.kind])
        super().__init__([widgets.HBox([sliders, choices]), self.picture])
        self._redraw()

    @property
    def symmetric(self) -> bool:
        """Is the grid to be symmetric about 0?"""
        return self.kind.value == "symmetric"

    @property
    def grid(self) -> Grid:
        """The grid that the controls ask for."""
        return grid_of(self.lower.value, self.upper.value, self.bits.value, self.symmetric)

    @property
    def error(self) -> float:
        """Mean squared error of `DATA` on that grid."""
        return split_error(
            DATA, self.lower.value, self.upper.value, self.bits.value, self.symmetric
        ).total

    def _redraw(self, change: dict[str, Any] | None = None) -> None:
        grid = self.grid
        alt = (
            f"{len(grid.codes)} codes on the number line from {grid.values[0]:.2f} to "
            f"{grid.values[-1]:.2f}: scale {grid.scale:.3g}, zero-point {grid.zero_point}, "
            f"mean squared error {self.error:.3g}."
        )
        self.picture.value = figures.to_html(draw_grid(grid, self.error), alt)


def draw_grid(grid: Grid, error: float) -> Figure:
    """The grid above the error that every real number makes on it."""
    fig, (line, saw) = figures.new(2, 1, size=(7.2, 4.2), sharex=True, height_ratios=[2, 3])
    _draw_line(line, grid)
    _draw_error(saw, grid)
    line.set_title(
        f"scale {grid.scale:.3g}    zero-point {grid.zero_point}    "
        f"mean squared error of the dots {error:.3g}"
    )
    return fig


def _round_trip(x: np.ndarray, grid: Grid) -> np.ndarray:
    codes = np.clip(np.rint(x / grid.scale) + grid.zero_point, grid.qmin, grid.qmax)
    return (codes - grid.zero_point) * grid.scale


def _draw_line(ax: Any, grid: Grid) -> None:
    data, values = DATA.numpy(), np.array(grid.values)
    ax.axvspan(values[0], values[-1], color=figures.PALETTE[5], alpha=0.15)
    ax.vlines(values, -0.35, 0.35, color=figures.PALETTE[0], linewidth=1.5)
    if len(values) <= MOST_LABELS:
        for code, value in zip(grid.codes, values, strict=True):
            if SEEN[0] <= value <= SEEN[1]:
                ax.text(value, 0.45, str(code), ha="center", color=figures.PALETTE[0])
    for x, x_hat in zip(data, _round_trip(data, grid), strict=True):
        ax.plot([x, x_hat], [-0.7, -0.35], color=figures.PALETTE[6], linewidth=1)
    ax.plot(data, np.full_like(data, -0.7), "o", color=figures.PALETTE[6], markersize=5)
    ax.set(ylim=(-1, 1), yticks=[0.6, 0, -0.7], yticklabels=["code", "grid", "values"])
    ax.grid(False)


def _draw_error(ax: Any, grid: Grid) -> None:
    x = np.linspace(*SEEN, 2001)
    error = x - _round_trip(x, grid)
    first, last = grid.values[0] - grid.scale / 2, grid.values[-1] + grid.scale / 2
    clipped = (x < first) | (x > last)
    ax.plot(x, np.where(clipped, np.nan, error), color=figures.PALETTE[0], label="rounded")
    ax.plot(x, np.where(clipped, error, np.nan), color=figures.PALETTE[1], label="clipped")
    data = DATA.numpy()
    ax.plot(data, data - _round_trip(data, grid), "o", color=figures.PALETTE[6], markersize=5)
    ax.set(xlim=SEEN, ylim=(-2.2, 2.2), xlabel="real value x", ylabel="error x - x̂")
    ax.legend(loc="lower right", ncols=2)
