"""Chapter 03: pick who shares a scale in a real weight matrix, and see steps, error and price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from labkit.core.errors import SchemeError
from labkit.core.granularity import expand
from labkit.core.metrics import sqnr_db
from labkit.core.scheme import QuantScheme
from labkit.course import figures
from labkit.course.widgets_03_pictures import pooled
from labkit.quantize import rtn

SHARINGS = ("tensor", "channel", "group 128", "group 64", "group 32", "group 16")
"""Who shares a scale, from all to few, as `scheme_for` understands it."""


def scheme_for(sharing: str, bits: int, symmetric: bool = True) -> QuantScheme:
    """The scheme that `sharing` names: "tensor", "channel", or "group 32".

    Raises SchemeError for anything else.
    """
    kind, _, size = sharing.partition(" ")
    if kind != "group" or not size.isdigit():
        return QuantScheme(bits, symmetric, sharing)  # type: ignore[arg-type]
    return QuantScheme(bits, symmetric, "group", int(size))


def sharings_for(weights: dict[str, Tensor]) -> list[str]:
    """Those of `SHARINGS` whose groups divide the rows of all matrices [out, in]."""
    columns = {weight.shape[1] for weight in weights.values()}
    return [sharing for sharing in SHARINGS if all(n % _size(sharing) == 0 for n in columns)]


def _size(sharing: str) -> int:
    """The number of elements that must divide a row for `sharing` to be possible."""
    return int(sharing.partition(" ")[2] or 1)


@dataclass(frozen=True)
class Measured:
    """One matrix under one scheme. `step` and `error` are float32 [out, in]."""

    bits_per_weight: float
    sqnr_db: float
    step: Tensor
    error: Tensor


def measure(weight: Tensor, scheme: QuantScheme) -> Measured:
    """Round `weight` [out, in] to nearest: the step that each weight met, and its error."""
    quantized = rtn.quantize(weight, scheme)
    restored = quantized.dequantize()
    step = expand(quantized.scale.float(), scheme, weight.shape).expand(weight.shape)
    return Measured(
        quantized.bits_per_weight, sqnr_db(weight, restored), step, (weight - restored).abs()
    )


class GranularityPicker(widgets.VBox):
    """Choices of matrix, bits and sharing; `measured` and the picture follow them.

    Args:
        weights: float [out, in] matrices by name. Sharings that do not divide every row are left
            out.

    Raises:
        SchemeError: no matrices.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        if not weights:
            raise SchemeError("no matrices to pick from", where="GranularityPicker")
        self._weights = weights
        self._measured: dict[tuple[str, str, int], Measured] = {}
        wide = {"style": {"description_width": "8em"}, "layout": widgets.Layout(width="34em")}
        self.layer = widgets.Dropdown(options=list(weights), description="matrix", **wide)
        self.sharing = widgets.SelectionSlider(
            options=sharings_for(weights), value="tensor", description="share a scale", **wide
        )
        self.bits = widgets.IntSlider(4, 2, 8, description="bits", **wide)
        self.picture = widgets.HTML()
        super().__init__([self.layer, self.sharing, self.bits, self.picture])
        for control in (self.layer, self.sharing, self.bits):
            control.observe(self._redraw, names="value")
        self._redraw()

    @property
    def measured(self) -> Measured:
        """What the choices give."""
        return self._measure(self.sharing.value)

    @property
    def text(self) -> str:
        """The choices and what they give, in a sentence."""
        return (
            f"{self.layer.value} at {self.bits.value} bits, scales per {self.sharing.value}: "
            f"{self.measured.bits_per_weight:.2f} bits per weight, {self.measured.sqnr_db:.1f} dB."
        )

    def _measure(self, sharing: str) -> Measured:
        key = (self.layer.value, sharing, self.bits.value)
        if key not in self._measured:
            scheme = scheme_for(sharing, self.bits.value)
            self._measured[key] = measure(self._weights[self.layer.value], scheme)
        return self._measured[key]

    def _redraw(self, change: dict[str, Any] | None = None) -> None:
        everyone = {sharing: self._measure(sharing) for sharing in self.sharing.options}
        fig = picker_figure(everyone, self.sharing.value)
        self.picture.value = figures.to_html(fig, self.text)


def picker_figure(everyone: dict[str, Measured], chosen: str) -> Figure:
    """Step and error of the chosen sharing over the matrix, and its place among all sharings.

    The colours mean the same for every sharing of one matrix and width, so that they compare.
    """
    fig, (steps, errors, price) = figures.new(1, 3, size=(10.5, 3.3), width_ratios=(1, 1, 1.1))
    finest = min(float(m.step.min()) for m in everyone.values())
    coarsest = max(float(m.step.max()) for m in everyone.values())
    step = pooled(everyone[chosen].step, torch.amax)
    picture = steps.imshow(step, cmap=figures.HEAT, norm=LogNorm(finest, coarsest), aspect="auto")
    fig.colorbar(picture, ax=steps, label="step (log)")
    steps.set(title="step that a weight meets")
    largest = float(pooled(next(iter(everyone.values())).error, torch.mean).max())
    error = pooled(everyone[chosen].error, torch.mean)
    picture = errors.imshow(error, cmap=figures.HEAT, vmin=0, vmax=largest, aspect="auto")
    fig.colorbar(picture, ax=errors, label="mean |error|")
    errors.set(title="error that it makes")
    for ax in (steps, errors):
        ax.set(xlabel="input channel", ylabel="output channel", xticks=[], yticks=[])
    for sharing, found in everyone.items():
        here = sharing == chosen
        price.plot(found.bits_per_weight, found.sqnr_db, "o", color=figures.PALETTE[here])
        price.annotate(
            sharing,
            (found.bits_per_weight, found.sqnr_db),
            xytext=(6, -10),
            textcoords="offset points",
            fontsize=8,
            fontweight="bold" if here else "normal",
        )
    price.margins(x=0.35, y=0.15)
    price.set(xlabel="bits per weight, all counted", ylabel="SQNR (dB)", title="what it buys")
    return fig
