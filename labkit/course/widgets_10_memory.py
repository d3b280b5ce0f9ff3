"""Notebook 10: weights and cache against the memory of a GPU."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from labkit.core.gpus import GPUS
from labkit.core.memory import gib, kv_cache_bytes, weight_bytes
from labkit.core.model_shapes import MODEL_SHAPES
from labkit.course import figures
from labkit.nn.kv_cache import KINDS, KVCache

_MODELS = ("llama-2-7b", "llama-3-8b", "llama-2-70b", "qwen2.5-7b")
_CARDS = ("T4", "L4", "A100 40 GB", "H100")
WEIGHT_BITS = 4.125


def stored_bits(kind: str, head_dim: int = 128) -> float:
    """Bits of one cached number in a long cache, scales counted."""
    return KVCache(kind, 1, 1, head_dim, 4096).bits_per_number  # type: ignore[arg-type]


class CacheExplorer(widgets.VBox):
    """Model, context, sequences and kind of cache; `cache_gib` is what the cache takes."""

    def __init__(self) -> None:
        self.model = widgets.Dropdown(options=_MODELS, value="llama-3-8b", description="model")
        self.kind = widgets.Dropdown(options=KINDS, value="fp16", description="cache")
        self.context = widgets.SelectionSlider(
            options=[2**power for power in range(10, 18)], value=8192, description="context"
        )
        self.sequences = widgets.IntSlider(8, min=1, max=64, description="sequences")
        self.picture = widgets.HTML()
        for control in (self.model, self.kind, self.context, self.sequences):
            control.observe(self._redraw, names="value")
        rows = [[self.model, self.kind], [self.context, self.sequences]]
        super().__init__([*(widgets.HBox(row) for row in rows), self.picture])
        self._redraw()

    @property
    def weight_gib(self) -> float:
        """Weights in 4-bit groups of 128."""
        return gib(weight_bytes(MODEL_SHAPES[self.model.value], WEIGHT_BITS))

    @property
    def cache_gib(self) -> float:
        shape = MODEL_SHAPES[self.model.value]
        bits = stored_bits(self.kind.value, shape.head_dim)
        return gib(kv_cache_bytes(shape, self.context.value, self.sequences.value, bits))

    @property
    def fitting(self) -> list[str]:
        """The cards whose memory holds both, 1 GiB left for the program."""
        need = self.weight_gib + self.cache_gib + 1
        return [card for card in _CARDS if GPUS[card].gib >= need]

    def _draw(self) -> Figure:
        fig, ax = figures.new(size=(7.6, 2.4))
        left = 0.0
        parts = (("weights, 4 bits", self.weight_gib), ("cache", self.cache_gib), ("program", 1.0))
        for (name, size), colour in zip(parts, (*figures.PALETTE[:2], "#999999"), strict=True):
            ax.barh(0, size, left=left, color=colour, label=f"{name}: {size:.1f} GiB")
            left += size
        for card in _CARDS:
            ax.axvline(GPUS[card].gib, color="black", linewidth=1, linestyle=":")
            ax.text(GPUS[card].gib, 0.46, card, rotation=30, fontsize=8, va="bottom")
        ax.set(yticks=[], xlabel="GiB", xlim=(0, max(96.0, left * 1.1)), ylim=(-0.45, 0.45))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=3)
        return fig

    def _redraw(self, *_: Any) -> None:
        cards = ", ".join(self.fitting) or "none"
        alt = (
            f"{self.model.value}, {self.sequences.value} sequences of {self.context.value} tokens, "
            f"{self.kind.value} cache: {self.cache_gib:.1f} GiB of cache beside "
            f"{self.weight_gib:.1f} of weights; it fits on: {cards}."
        )
        self.picture.value = figures.to_html(self._draw(), alt)
