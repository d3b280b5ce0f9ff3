"""Notebook 05: one row of a weight, rounded column by column under a slider."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from labkit.course import figures


class RowExplorer(widgets.VBox):
    """A slider for how many columns are rounded, a switch for passing their errors on.

    Args:
        row: float [in], few columns.
        hessian: float [in, in], positive definite.
        bits: of the narrow symmetric grid that spans the row.
    """

    def __init__(self, row: torch.Tensor, hessian: torch.Tensor, bits: int) -> None:
        self._row, self._hessian = row.double(), hessian.double()
        self._largest = 2 ** (bits - 1) - 1
        self.scale = float(self._row.abs().max()) / self._largest
        self.done = widgets.IntSlider(0, min=0, max=len(row), description="rounded")
        self.passing = widgets.Checkbox(True, description="pass errors on", indent=False)
        self.picture = widgets.HTML()
        for control in (self.done, self.passing):
            control.observe(self._redraw, names="value")
        super().__init__([widgets.HBox([self.done, self.passing]), self.picture])
        self._redraw()

    def frames(self, passing: bool) -> torch.Tensor:
        """The row after 0, 1, ... columns: float64 [in + 1, in]."""
        upper = torch.linalg.cholesky(torch.linalg.inv(self._hessian), upper=True)
        w, found = self._row.clone(), [self._row.clone()]
        for j in range(len(w)):
            code = (w[j] / self.scale).round().clamp(-self._largest, self._largest)
            error = (w[j] - code * self.scale) / upper[j, j]
            if passing:
                w[j:] -= error * upper[j, j:]
            w[j] = code * self.scale
            found.append(w.clone())
        return torch.stack(found)

    def damage(self, passing: bool) -> torch.Tensor:
        """d H d after each column, d the change of the whole row: float64 [in + 1]."""
        change = self.frames(passing) - self._row
        return ((change @ self._hessian) * change).sum(dim=1)

    def _draw(self) -> Figure:
        done, frames = self.done.value, self.frames(self.passing.value)
        fig, (top, bottom) = figures.new(2, 1, size=(6.4, 4.6), height_ratios=(3, 2))
        columns = range(len(self._row))
        for code in range(-self._largest, self._largest + 1):
            top.axhline(code * self.scale, color="#cccccc", linewidth=0.8)
        top.plot(columns, self._row, "o", color="#999999", label="as trained")
        top.plot(columns[:done], frames[done][:done], "s", label="rounded")
        top.plot(columns[done:], frames[done][done:], "D", label="still free")
        top.set(ylabel="weight", xlim=(-0.7, len(self._row) - 0.3))
        top.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
        for passing, label in ((False, "nearest"), (True, "errors passed on")):
            values = self.damage(passing)
            bottom.plot(range(len(values)), values, label=label)
        bottom.axvline(done, color="black", linewidth=1, linestyle=":")
        bottom.set(xlabel="columns rounded", ylabel="damage d H d", ylim=(0, None))
        bottom.legend()
        return fig

    def _redraw(self, *_: Any) -> None:
        nearest, passed = (float(self.damage(p)[self.done.value]) for p in (False, True))
        alt = f"{self.done.value} columns rounded: damage {nearest:.3g} without passing errors on, "
        self.picture.value = figures.to_html(self._draw(), alt + f"{passed:.3g} with it.")
