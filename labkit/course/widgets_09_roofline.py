"""Notebook 09: a layer on the roofline, under sliders for machine, bits and tokens."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from labkit.course import figures
from labkit.course.widgets_09_pictures import draw_roof
from labkit.evaluate.roofline import Roof, Work, linear_work

MACHINES = {
    "laptop (8 cores, two DDR5-5200)": Roof(83.2e9, 8 * 3.5e9 * 32),
    "NVIDIA A100 80 GB": Roof(2.039e12, 312e12),
    "NVIDIA H100 SXM": Roof(3.35e12, 989e12),
}
"""Makers' figures: memory's bandwidth, and float16 (the laptop's: float32, 32 operations a cycle
and core) products without sparsity."""

BITS = {"16 bits": 16.0, "8 bits": 8.0 + 16 / 4096, "4 bits, groups of 128": 4.125}
SIZE = 4096
_ENDS = (0.5, 4096)


class RooflineExplorer(widgets.VBox):
    """A 4096 x 4096 layer: dropdowns for machine and bits, a slider for tokens at a time."""

    def __init__(self) -> None:
        self.machine = widgets.Dropdown(options=list(MACHINES), description="machine")
        self.bits = widgets.Dropdown(options=list(BITS), description="weights")
        self.tokens = widgets.SelectionSlider(
            options=[2**power for power in range(12)], description="tokens"
        )
        self.text, self.picture = widgets.HTML(), widgets.HTML()
        for control in (self.machine, self.bits, self.tokens):
            control.observe(self._redraw, names="value")
        controls = widgets.HBox([self.machine, self.bits, self.tokens])
        super().__init__([controls, self.text, self.picture])
        self._redraw()

    @property
    def roof(self) -> Roof:
        """The chosen machine's."""
        return MACHINES[self.machine.value]

    def work(self, bits: str | None = None) -> Work:
        """Of the layer with the chosen tokens; with the chosen bits if none are given."""
        return linear_work(SIZE, SIZE, self.tokens.value, BITS[bits or self.bits.value])

    @property
    def speedup(self) -> float:
        """How many times as fast as with 16 bits, if unpacking costs nothing."""
        return self.roof.seconds(self.work("16 bits")) / self.roof.seconds(self.work())

    @property
    def meaning(self) -> str:
        """What the point says, in words."""
        work, roof = self.work(), self.roof
        return (
            f"{work.intensity:.3g} operations per byte, the ridge is at {roof.ridge:.3g}: "
            f"{roof.bound_by(work)} sets the pace. At best {roof.seconds(work) * 1e6:.3g} µs, "
            f"{self.speedup:.2f} times as fast as with 16 bits."
        )

    def _draw(self) -> Figure:
        fig, ax = figures.new(size=(7.2, 3.6))
        draw_roof(ax, self.roof, "roof", _ENDS, color="black", linewidth=1.4)
        for place, name in enumerate(BITS):
            work = self.work(name)
            chosen = name == self.bits.value
            rate = self.roof.attainable(work.intensity) / 1e9
            ax.plot(work.intensity, rate, "osD"[place], color=figures.PALETTE[place], label=name,
                    markersize=12 if chosen else 6, alpha=1 if chosen else 0.6)  # fmt: skip
        ax.axvline(self.roof.ridge, color="#999999", linestyle=":", linewidth=1)
        ax.set(xscale="log", yscale="log", xlim=_ENDS, xlabel="operations per byte",
               ylabel="billion operations a second")  # fmt: skip
        ax.legend(loc="lower right", fontsize=9)
        return fig

    def _redraw(self, *_: Any) -> None:
        self.text.value = self.meaning
        alt = (
            f"Roofline of {self.machine.value}; {self.tokens.value} tokens at a time with "
            f"{self.bits.value} lie on the part that {self.roof.bound_by(self.work())} bounds."
        )
        self.picture.value = figures.to_html(self._draw(), alt)
