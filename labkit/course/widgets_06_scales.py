"""Notebook 06: two sliders make scales of loudness; the output error follows."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from labkit.core.scheme import QuantScheme
from labkit.course import figures
from labkit.quantize import awq
from labkit.quantize.awq_scales import ScaleSpace, salience
from labkit.quantize.hessian import InputStats

ALPHAS = tuple(step / 20 for step in range(21))


class ScaleExplorer(widgets.VBox):
    """A menu of layers, sliders for both exponents; `picture` holds the drawing.

    Args:
        weights: float [out, in] by name.
        inputs: float [tokens, in] by the same names.
        scheme: the grid that the weights are rounded to.
    """

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        inputs: dict[str, torch.Tensor],
        scheme: QuantScheme,
    ) -> None:
        self._weights, self._inputs, self._scheme = weights, inputs, scheme
        self._known: dict[str, tuple[Any, ...]] = {}
        self._curves: dict[tuple[str, float], list[float]] = {}
        self.layer = widgets.Dropdown(options=list(weights), description="layer")
        self.alpha = widgets.FloatSlider(0.0, min=0, max=1, step=0.05, description="a (inputs)")
        self.beta = widgets.FloatSlider(0.0, min=0, max=1, step=0.05, description="b (weights)")
        for slider in (self.alpha, self.beta):
            slider.layout = widgets.Layout(width="26em")
        self.picture = widgets.HTML()
        for control in (self.layer, self.alpha, self.beta):
            control.observe(self._redraw, names="value")
        sliders = widgets.HBox([self.alpha, self.beta])
        super().__init__([self.layer, sliders, self.picture])
        self._redraw()

    @property
    def error(self) -> float:
        """Output error with the scales now chosen, as a part of that without scales."""
        space, loss, plain = self._layer()
        return loss(space.candidate(self.alpha.value, self.beta.value).scales) / plain

    def _layer(self) -> tuple[Any, ...]:
        """(space, loss, the loss without scales) of the layer now chosen."""
        name = self.layer.value
        if name not in self._known:
            stats = InputStats(self._weights[name].shape[1]).add(self._inputs[name])
            space = ScaleSpace(salience(stats), [self._weights[name]], self._scheme)
            loss = awq.output_loss(self._weights[name], stats.hessian() / 2, self._scheme)
            self._known[name] = space, loss, loss(space.candidate(0.0).scales)
        return self._known[name]

    @property
    def curve(self) -> list[float]:
        """`error` for each of `ALPHAS`, with b as it stands."""
        key = self.layer.value, self.beta.value
        if key not in self._curves:
            space, loss, plain = self._layer()
            self._curves[key] = [loss(space.candidate(a, key[1]).scales) / plain for a in ALPHAS]
        return self._curves[key]

    def _draw(self) -> Figure:
        space, _, _ = self._layer()
        scales = space.candidate(self.alpha.value, self.beta.value).scales
        fig, (left, right) = figures.new(1, 2, size=(7.6, 3.3))
        left.plot(ALPHAS, self.curve, marker=".")
        left.plot([self.alpha.value], [self.error], "o", markersize=10, color=figures.PALETTE[1])
        left.axhline(1, color="black", linewidth=1, linestyle=":")
        left.set(xlabel="a", ylabel="output error / that without scales", ylim=(0, None))
        left.set(title=f"{self.error:.2f} of the error is left")
        right.loglog(space.x_mean, scales, ".", markersize=4)
        right.set(
            xlabel="mean |x| of the channel", ylabel="its scale", title="one dot, one channel"
        )
        return fig

    def _redraw(self, *_: Any) -> None:
        alt = (
            f"{self.layer.value}: output error against a with b = {self.beta.value:.2f}, "
            f"{self.error:.2f} of the unscaled one at a = {self.alpha.value:.2f}; beside it the "
            "scale of every channel against its mean |x|."
        )
        self.picture.value = figures.to_html(self._draw(), alt)
