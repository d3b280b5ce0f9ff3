"""Notebook 08: what training does, seen while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import nn

from labkit.course import figures
from labkit.training.layers import rounders
from labkit.training.lsq import LearnedScale


class LossCurve(widgets.VBox):
    """The loss of a run, drawn anew every few steps. Give `progress` to `train`.

    Args:
        steps: of the whole run.
        every: steps between two pictures; the last step is always drawn.
    """

    def __init__(self, steps: int, every: int = 2, ylabel: str = "loss (nats a token)") -> None:
        self.steps, self.every, self.ylabel = steps, every, ylabel
        self.losses: list[float] = []
        self.picture = widgets.HTML()
        super().__init__([self.picture])
        self._redraw()

    def progress(self, words: str, done: int, steps: int) -> None:
        """What `labkit.training.trainer.train` calls after a step; `words` end in the loss."""
        self.losses.append(float(words.split()[-1]))
        if done % self.every == 0 or done == steps:
            self._redraw()

    def figure(self) -> Figure:
        """The curve as it is now."""
        fig, ax = figures.new(size=(6.4, 3.0))
        ax.plot(range(1, len(self.losses) + 1), self.losses, marker="o", markersize=3)
        ax.set(xlabel="step", ylabel=self.ylabel, xlim=(0, self.steps + 1))
        ax.set_ylim(0, 1.05 * max(self.losses, default=1.0))
        return fig

    def _redraw(self) -> None:
        now = f"{self.losses[-1]:.2f} after" if self.losses else "nothing yet after"
        alt = f"Loss against steps: {now} {len(self.losses)} of {self.steps} steps."
        self.picture.value = figures.to_html(self.figure(), alt)


class ScaleLog:
    """The learned scales of one layer, noted at each call; the first row is how they started.

    Args:
        model: what `prepare` returned.
        name: of a layer with learned scales.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._learned = model.get_submodule(name).weight_quant
        self.rows = [self._now()]

    def note(self) -> None:
        """Take down the scales as they are."""
        self.rows.append(self._now())

    def relative(self) -> torch.Tensor:
        """Every scale as a multiple of its start: float32 [notes, scales]."""
        rows = torch.stack(self.rows)
        return rows / rows[0]

    def _now(self) -> torch.Tensor:
        return self._learned.scale.detach().flatten().clone()


def learned_scales(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name of each layer with learned scales to their values now, float32 [scales]."""
    return {
        name.removesuffix(".weight_quant"): module.scale.detach().flatten().clone()
        for name, module in rounders(model).items()
        if isinstance(module, LearnedScale)
    }


def scale_paths(log: ScaleLog, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor],
                shown: Sequence[int]) -> Figure:  # fmt: skip
    """Left: chosen scales of one layer, step by step. Right: how far all of the model's went."""
    fig, (left, right) = figures.new(1, 2, size=(9.2, 3.6), width_ratios=(3, 2))
    paths = log.relative()
    for channel in shown:
        left.plot(paths[:, channel], linewidth=1.2)
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    left.set(xlabel="step", ylabel="scale, as a multiple of its start")
    ratios = torch.cat([after[name] / before[name] for name in before])
    right.hist(ratios.numpy(), bins=40)
    right.axvline(1, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="scale after / before", ylabel="output channels")
    return fig


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; elsewhere it is slower than float32.

    oneDNN, which torch leaves the products to, may be told to use less than there is.
    """
    found = torch.cpu.get_capabilities()
    there = any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if there and torch.backends.mkldnn.is_available():
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return there
