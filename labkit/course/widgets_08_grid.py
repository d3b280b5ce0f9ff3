"""Notebook 08: the staircase, the line that it follows, and both gradients, under sliders."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from labkit.core.affine import integer_range
from labkit.course import figures
from labkit.training.lsq import learned_fake_quantize

REACH = 5.0
"""The curves are drawn from -REACH to REACH."""


class GridExplorer(widgets.VBox):
    """Sliders for bits and scale; below them x̂, its gradient by x, and by the scale.

    The curves are those of `labkit.training.lsq`, forward and backward.
    """

    def __init__(self) -> None:
        self.bits = widgets.IntSlider(3, min=2, max=4, description="bits")
        self.scale = widgets.FloatSlider(1.0, min=0.2, max=1.6, step=0.05, description="scale")
        self.picture = widgets.HTML()
        for control in (self.bits, self.scale):
            control.observe(self._redraw, names="value")
        super().__init__([widgets.HBox([self.bits, self.scale]), self.picture])
        self._redraw()

    def curves(self, points: int = 2001) -> dict[str, torch.Tensor]:
        """Over "x", float32 [points]: "rounded", "by x" and "by scale", the two gradients."""
        x = torch.linspace(-REACH, REACH, points)[:, None].requires_grad_(True)
        scale = torch.full_like(x, self.scale.value).requires_grad_(True)
        qmin, qmax = integer_range(self.bits.value, True, narrow_range=False)
        rounded = learned_fake_quantize(x, scale, torch.zeros_like(x), qmin, qmax, 1.0)
        by_x, by_scale = torch.autograd.grad(rounded.sum(), (x, scale))
        named = {"x": x, "rounded": rounded, "by x": by_x, "by scale": by_scale}
        return {name: values.detach().flatten() for name, values in named.items()}

    @property
    def clipped(self) -> float:
        """The share of -REACH .. REACH that gets no gradient by x."""
        return float((self.curves()["by x"] == 0).float().mean())

    def _draw(self) -> Figure:
        curves = self.curves()
        x = curves["x"]
        fig, axes = figures.new(3, 1, size=(6.8, 6.0), sharex=True, height_ratios=(5, 2, 4))
        axes[0].plot(x, x, color="#999999", linewidth=1, linestyle=":", label="x itself")
        axes[0].plot(x, curves["rounded"], label="rounded")
        axes[0].set(ylabel="x̂", ylim=(-REACH, REACH))
        axes[0].legend()
        axes[1].plot(x, curves["by x"], color=figures.PALETTE[1])
        axes[1].set(ylabel="gradient by x", ylim=(-0.15, 1.25), yticks=[0, 1])
        axes[2].plot(x, curves["by scale"], color=figures.PALETTE[2])
        axes[2].set(ylabel="gradient by scale", xlabel="x", ylim=(-8.5, 7.5))
        return fig

    def _redraw(self, *_: Any) -> None:
        alt = (
            f"{self.bits.value} bits, scale {self.scale.value:.2f}: a staircase of "
            f"{2**self.bits.value} levels; {self.clipped:.0%} of the range drawn is clipped."
        )
        self.picture.value = figures.to_html(self._draw(), alt)
