"""Does it fit? Model, precision, context and batch against the memory of real GPUs."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from labkit.core.gpus import GPUS
from labkit.core.memory import MemoryEstimate, Runtime, estimate, gib
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape
from labkit.course import figures

PARTS = ("weights", "kv_cache", "activations", "overhead")
WEIGHT_BITS = {
    "32 (FP32)": 32.0,
    "16 (FP16, BF16)": 16.0,
    "8 (INT8, FP8)": 8.0,
    "4.125 (INT4, groups of 128)": 4.125,
    "3.125 (INT3, groups of 128)": 3.125,
    "2.125 (INT2, groups of 128)": 2.125,
}
CACHE_BITS = {"16": 16.0, "8": 8.0, "4": 4.0}
CONTEXTS = [2**power for power in range(10, 18)]
GPUS_DRAWN = ("RTX 4060 Ti", "RTX 4090", "L40S", "H100", "H200")


def gpus_that_fit(total_bytes: int) -> list[str]:
    """Names of the GPUs that hold that many bytes, smallest first."""
    fitting = [gpu for gpu in GPUS.values() if gib(total_bytes) <= gpu.gib]
    return [gpu.name for gpu in sorted(fitting, key=lambda gpu: gpu.gib)]


def stack(ax: Any, rows: dict[str, MemoryEstimate]) -> None:
    """Horizontal bars of the four parts of each estimate, in GiB."""
    left = [0.0] * len(rows)
    for part, colour in zip(PARTS, figures.PALETTE, strict=False):
        widths = [gib(getattr(row, part)) for row in rows.values()]
        ax.barh(list(rows), widths, left=left, color=colour, label=part.replace("_", " "))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("memory (GiB)")


def gpu_lines(ax: Any, names: tuple[str, ...] = GPUS_DRAWN) -> None:
    """A dashed line at the memory of each GPU, with its name above the axes."""
    for name in names:
        size = GPUS[name].gib
        ax.axvline(size, color="#444444", linestyle="--", linewidth=1)
        ax.text(size, 1.02, f"{name}", rotation=35, fontsize=8, transform=ax.get_xaxis_transform())


def memory_figure(rows: dict[str, MemoryEstimate], gpus: tuple[str, ...] = GPUS_DRAWN) -> Figure:
    """One bar an estimate against the memory of GPUs."""
    fig, ax = figures.new(size=(7.2, 1.5 + 0.36 * len(rows)))
    stack(ax, rows)
    gpu_lines(ax, gpus)
    ax.legend(loc="lower right", fontsize=8)
    return fig


class MemoryExplorer(widgets.VBox):
    """Five controls and one bar. `estimate`, `fitting` and `text` say what they add up to."""

    def __init__(self, model: str = "llama-3-8b") -> None:
        wide = {"style": {"description_width": "7em"}, "layout": widgets.Layout(width="26em")}
        self.model = widgets.Dropdown(
            options=list(MODEL_SHAPES), value=model, description="model", **wide
        )
        self.bits = widgets.Dropdown(
            options=WEIGHT_BITS, value=16.0, description="weight bits", **wide
        )
        self.kv_bits = widgets.Dropdown(
            options=CACHE_BITS, value=16.0, description="cache bits", **wide
        )
        self.context = widgets.SelectionSlider(
            options=CONTEXTS, value=8192, description="context", **wide
        )
        self.batch = widgets.IntSlider(1, 1, 64, description="sequences", **wide)
        self._words, self._picture = widgets.HTML(), widgets.HTML()
        controls = [self.model, self.bits, self.kv_bits, self.context, self.batch]
        for control in controls:
            control.observe(self._redraw, names="value")
        super().__init__([*controls, self._words, self._picture])
        self._redraw({})

    def _redraw(self, change: dict[str, Any]) -> None:
        runtime = Runtime(kv_bits=self.kv_bits.value)
        shape = MODEL_SHAPES[self.model.value]
        self.estimate = estimate(
            shape, self.bits.value, self.context.value, self.batch.value, runtime
        )
        self.fitting = gpus_that_fit(self.estimate.total)
        sizes = ", ".join(
            f"{part.replace('_', ' ')} {gib(getattr(self.estimate, part)):.1f}" for part in PARTS
        )
        fit = ", ".join(self.fitting) or "no single GPU of the list"
        self.text = f"{gib(self.estimate.total):.1f} GiB ({sizes}). Fits on: {fit}."
        self._words.value = self.text
        figure = memory_figure({self.model.value: self.estimate})
        self._picture.value = figures.to_html(figure, alt=f"Memory bar. {self.text}")


def cache_bytes(cache: Any) -> int:
    """Bytes of all keys and values in a transformers cache, in version 4 and in version 5."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        tensors = [*cache.key_cache, *cache.value_cache]
    else:
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def shape_of(config: Any) -> ModelShape:
    """The shape of a loaded model of the Llama kind, from its transformers config."""
    return ModelShape(
        name=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        vocab=config.vocab_size,
        tied=config.tie_word_embeddings,
    )
