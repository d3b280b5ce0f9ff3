"""Notebook 10: pictures of keys and values, of errors, and of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from labkit.core.affine import choose_qparams, fake_quantize
from labkit.core.metrics import sqnr_db
from labkit.course import figures
from labkit.quantize.float8_activation import quantize_float8


def heat_maps(maps: Mapping[str, Tensor]) -> Figure:
    """|x| of each [tokens, channels], tokens downwards."""
    fig, axes = figures.new(1, len(maps), size=(3.0 * len(maps), 3.4))
    for ax, (title, x) in zip(axes, maps.items(), strict=True):
        top = float(x.abs().quantile(0.995))  # a few extremes would darken all the rest
        image = ax.imshow(x.abs().numpy(), aspect="auto", vmin=0, vmax=top, cmap=figures.HEAT)
        ax.set(title=title, xlabel="channel of the head")
        ax.grid(False)
        fig.colorbar(image, ax=ax, shrink=0.8, extend="max")
    axes[0].set_ylabel("token")
    return fig


def round_int8(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """x in int8 and back, with the scale that just covers each row, or a given one."""
    if scale is None:
        reach = x.abs().amax(-1, keepdim=True)
        scale, _ = choose_qparams(-reach, reach, 8, symmetric=True)
    return fake_quantize(x, scale, 0, -127, 127)


def round_float8(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """x in E4M3 and back, with the scale that just covers each row, or a given one."""
    codes, used = quantize_float8(x, scale=scale)
    return codes.float() * used


def errors_beside_a_loud_channel(louder: Sequence[float]) -> dict[str, list[float]]:
    """SQNR in dB of the 63 quiet channels of a key whose first is so many times louder."""
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[float]] = {"int8": [], "fp8": []}
    for factor in louder:
        loud = x.clone()
        loud[:, 0] = 3 * factor
        for name, rounded in (("int8", round_int8), ("fp8", round_float8)):
            found[name].append(sqnr_db(loud[:, 1:], rounded(loud)[:, 1:]))
    return found


def errors_of_wrong_scales(factors: Sequence[float]) -> dict[str, list[float]]:
    """SQNR in dB where the scale is `factors` times the one that just covers a tensor."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    reach = x.abs().max()
    found: dict[str, list[float]] = {"int8": [], "fp8": []}
    for factor in factors:
        found["int8"].append(sqnr_db(x, round_int8(x, reach / 127 * factor)))
        found["fp8"].append(sqnr_db(x, round_float8(x, reach / 448 * factor)))
    return found


def whole_model(rows: Mapping[str, tuple[float, float, float]], sequences: int) -> Figure:
    """MiB of weights and of cache, and perplexity, for each way to store the model."""
    fig, (left, right) = figures.new(1, 2, size=(9.2, 3.2), sharey=True, width_ratios=(3, 2))
    names, places = list(rows), np.arange(len(rows))[::-1]
    weights, cache, quality = (np.array([rows[name][k] for name in names]) for k in range(3))
    left.barh(places, weights, color=figures.PALETTE[0], label="weights")
    label = f"cache of {sequences} sequences"
    left.barh(places, cache, left=weights, color=figures.PALETTE[1], label=label)
    left.set(yticks=places, yticklabels=names, xlabel="MiB")
    left.legend(loc="lower right")
    right.plot(quality, places, "o", color=figures.PALETTE[2], markersize=9)
    for value, place in zip(quality, places, strict=True):
        right.annotate(f"{value:.1f}", (value, place), xytext=(8, -3), textcoords="offset points")
    right.set(xlabel="perplexity", xlim=(0, 1.25 * quality.max()))
    return fig
