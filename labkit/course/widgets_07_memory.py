"""Notebook 07: a limit of memory chooses the type of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from labkit.course import figures

GIB = 2**30


class MemoryExplorer(widgets.VBox):
    """Sliders for the memory, the model's weights and the cache; `best` is the type that wins.

    Args:
        types: name -> (bits per weight, quality; less is better).
        quality: what that number is, for the axis.
    """

    def __init__(self, types: Mapping[str, tuple[float, float]], quality: str) -> None:
        self._types, self._quality = dict(types), quality
        self.limit = widgets.FloatSlider(6, min=1, max=24, step=0.25, description="memory, GiB")
        self.weights = widgets.FloatSlider(8, min=1, max=14, step=0.5, description="10⁹ weights")
        self.cache = widgets.FloatSlider(1, min=0, max=8, step=0.25, description="cache, GiB")
        self.picture = widgets.HTML()
        for control in (self.limit, self.weights, self.cache):
            control.observe(self._redraw, names="value")
        super().__init__([widgets.HBox([self.limit, self.weights, self.cache]), self.picture])
        self._redraw()

    def gibibytes(self, name: str) -> float:
        """Weights in this type, and the cache."""
        return self._types[name][0] * self.weights.value * 1e9 / 8 / GIB + self.cache.value

    @property
    def best(self) -> str | None:
        """The type with the best quality of those that fit, or None."""
        fitting = [name for name in self._types if self.gibibytes(name) <= self.limit.value]
        return min(fitting, key=lambda name: self._types[name][1], default=None)

    def _draw(self) -> Figure:
        fig, ax = figures.new(size=(7.2, 3.6))
        named: list[tuple[float, float]] = []
        # The best first: names that would lie on another's are left out.
        for name in sorted(self._types, key=lambda name: name != self.best):
            quality = self._types[name][1]
            need = self.gibibytes(name)
            colour = figures.PALETTE[0] if need <= self.limit.value else "#bbbbbb"
            if name == self.best:
                colour = figures.PALETTE[1]
            ax.plot(need, quality, "o", color=colour, markersize=10 if name == self.best else 6)
            at = need, math.log10(quality)
            if any(abs(at[0] - x) < 0.4 and abs(at[1] - y) < 0.25 for x, y in named):
                continue
            named.append(at)
            ax.annotate(name, (need, quality), xytext=(-4, -12), textcoords="offset points",
                        ha="right", fontsize=8, color=colour)  # fmt: skip
        ax.margins(0.12)
        ax.axvline(self.limit.value, color="black", linewidth=1, linestyle="--")
        ax.set(xlabel="weights and cache (GiB)", ylabel=self._quality, yscale="log")
        ax.set_title(self.best or "nothing fits: fewer weights, or a shorter cache")
        return fig

    def _redraw(self, *_: Any) -> None:
        alt = (
            f"{self.limit.value:g} GiB for {self.weights.value:g} thousand million weights and "
            f"{self.cache.value:g} GiB of cache: the best type that fits is {self.best}."
        )
        self.picture.value = figures.to_html(self._draw(), alt)
