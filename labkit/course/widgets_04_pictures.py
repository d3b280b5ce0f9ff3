"""Pictures of chapter 04: loud channels, what they leave of the grid, and what rotation does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor

from labkit.course import figures
from labkit.course.widgets_03_pictures import plain_log
from labkit.quantize.rotation import kurtosis

LEVELS = 255


def channel_map(maxima: Mapping[str, Tensor]) -> Figure:
    """max|x| of each channel (columns) in each layer's input (rows).

    `maxima`: float [channels] by a short name of the layer, the same channels in all. The loudest
    two of each row are named, where there is room.
    """
    table = torch.stack(list(maxima.values())).numpy()
    fig, ax = figures.new(size=(7.6, 0.9 + 0.24 * len(table)))
    # Each channel twice, so that a single bright column is not lost between two pixels.
    wide = np.repeat(table, 2, axis=1)
    picture = ax.imshow(wide, cmap=figures.HEAT, vmin=0, aspect="auto", interpolation="none")
    ax.set_yticks(range(len(table)), labels=list(maxima), fontsize=8)
    named: list[int] = []
    for channel in np.argsort(-table, axis=1)[:, :2].T.flatten().tolist():
        if all(abs(channel - other) > table.shape[1] // 20 for other in named):
            named.append(channel)
    ax.set_xticks([2 * c + 0.5 for c in named], labels=[str(c) for c in named])
    ax.set(xlabel=f"channel (of {table.shape[1]}; the loudest are named)")
    ax.grid(False)
    fig.colorbar(picture, ax=ax, label="max |x|")
    return fig


def crushed(x: Tensor, used: Tensor, title: str) -> Figure:
    """From where to where each channel goes, over all tokens; below, the int8 codes that it uses.

    x: float [tokens, channels]; used: int [channels], how many of the 255 codes of one common
    scale each channel takes.
    """
    fig, (top, bottom) = figures.new(2, 1, size=(7.0, 4.8), sharex=True)
    low, high = x.amin(dim=0), x.amax(dim=0)
    loud = int(x.abs().amax(dim=0).argmax())
    colours = [figures.PALETTE[channel == loud] for channel in range(len(used))]
    top.bar(range(len(low)), (high - low).tolist(), width=1.0, bottom=low.tolist(), color=colours)
    end = float(high[loud] if high[loud] >= -low[loud] else low[loud])
    top.annotate(
        f"channel {loud}: {end:.0f}",
        (loud, end),
        xytext=(8, 0),
        textcoords="offset points",
        color=figures.PALETTE[1],
        va="center",
    )
    usual = f"the usual channel: {float(low.median()):.1f} to {float(high.median()):.1f}"
    top.text(0.98, 0.35, usual, transform=top.transAxes, ha="right", color=figures.PALETTE[0])
    top.set(ylabel="range of x", title=title)
    bottom.bar(range(len(used)), used.tolist(), width=1.0, color=colours)
    bottom.axhline(LEVELS, color="black", linewidth=1, linestyle=":")
    bottom.text(0, LEVELS, f" all {LEVELS} codes", va="bottom", fontsize=8)
    bottom.set(xlabel="channel", ylabel="codes in use", ylim=(0, LEVELS * 1.15))
    return fig


def spread_histograms(pictures: Sequence[tuple[str, Tensor]]) -> Figure:
    """Histograms of activations side by side, counts on a logarithmic axis, kurtosis in the title.

    All share one x axis, so that a narrower histogram is a finer step.
    """
    fig, axes = figures.new(1, len(pictures), size=(3.6 * len(pictures), 3.0), sharey=True)
    edge = max(float(x.abs().max()) for _, x in pictures)
    for ax, (title, x) in zip(np.atleast_1d(axes), pictures, strict=True):
        ax.hist(x.flatten().numpy(), bins=121, range=(-edge, edge), color=figures.PALETTE[0])
        ax.set_yscale("log")
        ax.set(xlabel="x", title=f"{title}\nkurtosis {kurtosis(x):.1f}, max {x.abs().max():.1f}")
    np.atleast_1d(axes)[0].set_ylabel("values (log)")
    return fig


def alpha_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float], float]]) -> Figure:
    """Relative output error against alpha; a dotted line is the error without smoothing.

    `curves`: (alphas, errors, error without smoothing) by the layer's name.
    """
    fig, ax = figures.new(size=(7.0, 4.0))
    for (name, (alphas, errors, without)), colour in zip(
        curves.items(), figures.PALETTE, strict=False
    ):
        ax.plot(alphas, errors, marker="o", markersize=3, label=name, color=colour)
        ax.axhline(without, color=colour, linewidth=1, linestyle=":")
    ax.set_yscale("log")
    ax.set(xlabel="alpha: share of the loudness that goes to the weight")
    ax.set_ylabel("relative output error (log)")
    ax.legend(
        title="dotted: not smoothed",
        fontsize=8,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
    )
    return fig


def price_bars(rows: Mapping[str, float], base: float, label: str = "perplexity") -> Figure:
    """A horizontal bar for each row, logarithmic, and a line at the floating-point model."""
    fig, ax = figures.new(size=(7.2, 0.9 + 0.34 * len(rows)))
    names = list(rows)
    ax.barh(range(len(names)), [rows[n] - base * 0.9 for n in names], left=base * 0.9)
    ax.axvline(base, color="black", linewidth=1, linestyle=":")
    ax.set_yticks(range(len(names)), labels=names)
    for index, name in enumerate(names):
        ax.annotate(
            f" {rows[name]:.4g}", (rows[name], index), va="center", fontsize=8, clip_on=False
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"{label} (log); dotted: floating point")
    ax.set_xlim(base * 0.9, max(rows.values()) * 1.6)
    ax.invert_yaxis()
    return fig


def balance(x_max: Tensor, w_max: Tensor, scales: Tensor) -> Figure:
    """Maxima of every channel in x and in w, before and after smoothing, loudest x first."""
    fig, axes = figures.new(1, 2, size=(8.4, 3.2), sharey=True)
    order = x_max.argsort(descending=True)
    for ax, title, x, w in (
        (axes[0], "as it is", x_max, w_max),
        (axes[1], "smoothed", x_max / scales, w_max * scales),
    ):
        ax.plot(x[order], ".", markersize=3, label="max |x| of the channel")
        ax.plot(w[order], "x", markersize=3, markeredgewidth=0.6, label="max |w| of its column")
        ax.set(title=title, xlabel="channel, loudest x first")
        plain_log(ax, "")
    axes[0].set_ylabel("maximum (log)")
    axes[1].legend(fontsize=8)
    return fig
