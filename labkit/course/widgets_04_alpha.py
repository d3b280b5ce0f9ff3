"""Chapter 04: move alpha and see which side of a layer gets loud, and what the outputs lose."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets as widgets
from torch import Tensor

from labkit.core.errors import ShapeError
from labkit.course import figures
from labkit.course.widgets_04_pictures import balance
from labkit.quantize.smoothquant import (
    AlphaSearch,
    column_maxima,
    search_alpha,
    smoothing_scales,
)


class AlphaSlider(widgets.VBox):
    """Choices of layer and alpha; `error`, `text` and the picture follow them.

    Args:
        layers: (x [tokens, in], weight [out, in]) by name.

    Raises ShapeError when there are none.
    """

    def __init__(self, layers: dict[str, tuple[Tensor, Tensor]]) -> None:
        if not layers:
            raise ShapeError("no layers to choose from", where="AlphaSlider")
        self._layers = layers
        self._searched: dict[str, AlphaSearch] = {}
        wide = {"style": {"description_width": "4em"}, "layout": widgets.Layout(width="34em")}
        self.layer = widgets.Dropdown(options=list(layers), description="layer", **wide)
        self.alpha = widgets.FloatSlider(0.5, min=0.0, max=1.0, step=0.05, **wide)
        self.alpha.description = "alpha"
        self.picture = widgets.HTML()
        super().__init__([self.layer, self.alpha, self.picture])
        for control in (self.layer, self.alpha):
            control.observe(self._redraw, names="value")
        self._redraw()

    @property
    def search(self) -> AlphaSearch:
        """The error of the chosen layer at every alpha of the slider."""
        name = self.layer.value
        if name not in self._searched:
            x, weight = self._layers[name]
            self._searched[name] = search_alpha(x, [weight])
        return self._searched[name]

    @property
    def error(self) -> float:
        """The relative output error at the chosen alpha."""
        return self.search.errors[round(self.alpha.value * 20)]

    @property
    def text(self) -> str:
        """The choices and what they give, in a sentence."""
        decibels, without = (-10 * math.log10(e) for e in (self.error, self.search.unsmoothed))
        return (
            f"{self.layer.value} at alpha {self.alpha.value:.2f}: outputs at {decibels:.1f} dB, "
            f"not smoothed {without:.1f} dB, best alpha {self.search.best:.2f}."
        )

    def _redraw(self, change: dict[str, Any] | None = None) -> None:
        x, weight = self._layers[self.layer.value]
        x_max, w_max = x.abs().amax(dim=0), column_maxima([weight])
        fig = balance(x_max, w_max, smoothing_scales(x_max, w_max, self.alpha.value))
        fig.suptitle(self.text, fontsize=9)
        self.picture.value = figures.to_html(fig, self.text)
