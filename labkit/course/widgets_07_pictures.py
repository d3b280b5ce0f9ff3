"""Pictures of chapter 07: a file and a block as maps of bytes, and which type each tensor gets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from labkit.course import figures
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.values import encode
from labkit.quantize.gguf_types import BLOCK_TYPES, BlockType

# Light colours, so that black digits can be read on them.
TINTS = ("#f4b183", "#ffe08a", "#b7d7a8", "#9fc5e8", "#d5b8e0", "#d9d9d9", "#f2c6c6", "#c9e4de",
         "#e3dfa8")  # fmt: skip
Run = tuple[str, int, int]


def cells(ax: Axes, content: bytes, runs: Sequence[Run], width: int, chosen: int | None = None):
    """One square a byte, its two hexadecimal digits in it, the colour that of its run.

    Args:
        runs: (name, first byte, byte behind the last) of each coloured run.
        chosen: a byte to be framed.
    """
    for place, (_, first, end) in enumerate(runs):
        for at in range(first, min(end, len(content))):
            row, column = divmod(at, width)
            tint = TINTS[place % len(TINTS)]
            ax.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, edgecolor="white"))
            ax.text(column + 0.5, row + 0.55, f"{content[at]:02x}", ha="center", va="center",
                    fontsize=7, family="DejaVu Sans Mono")  # fmt: skip
    if chosen is not None:
        row, column = divmod(chosen, width)
        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=2.2))
    rows = -(-len(content) // width)
    ax.set(xlim=(0, width), ylim=(rows, 0), xticks=[])
    ax.set_yticks([row + 0.5 for row in range(rows)], labels=[str(width * r) for r in range(rows)])
    ax.set_ylabel("first byte of the row" if rows > 4 else "")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)


def block_runs(kind: BlockType) -> list[Run]:
    """The fields of a block as runs of bytes; the codes of a super-block, 32 bytes a run."""
    runs = []
    for field in kind.fields:
        end = field.offset + field.nbytes
        if field.name != "qs" or field.nbytes < 64:
            runs.append((field.name, field.offset, end))
            continue
        weights = 32 * kind.weights // field.nbytes
        for place, first in enumerate(range(field.offset, end, 32)):
            name = f"codes {weights * place} to {weights * (place + 1) - 1}"
            runs.append((name, first, first + 32))
    return runs


def block_map(kind: BlockType, block: bytes, chosen: int | None = None) -> Figure:
    """Every byte of a block, coloured by field."""
    runs = block_runs(kind)
    fig, ax = figures.new(size=(7.6, 0.7 + 0.3 * -(-len(block) // 16)))
    cells(ax, block, runs, 16, chosen)
    _legend(ax, [name for name, _, _ in runs])
    return fig


def header_map(data: bytes, runs: Sequence[Run]) -> Figure:
    """The first bytes of a file, up to the end of the last run, coloured by what they say."""
    fig, ax = figures.new(size=(7.6, 0.8 + 0.3 * -(-runs[-1][2] // 24)))
    cells(ax, data[: runs[-1][2]], runs, 24)
    _legend(ax, [name for name, _, _ in runs], columns=5)
    return fig


def _legend(ax: Axes, names: Sequence[str], columns: int = 4) -> None:
    handles = [Patch(color=tint, label=name) for tint, name in zip(TINTS, names, strict=False)]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8)


PARTS = ("metadata", "table of tensors", "embedding", "attention", "MLP", "norms", "head, other")
_COLOURS = ("#000000", "#7f7f7f", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def part_of(name: str) -> str:
    """Which of PARTS a tensor belongs to."""
    if "norm" in name:
        return "norms"
    if name.startswith(("token_embd", "position_embd")):
        return "embedding"
    if ".attn_" in name:
        return "attention"
    return "MLP" if ".ffn_" in name else "head, other"


def file_runs(file: GgufFile) -> list[Run]:
    """The whole file as runs of bytes, named by PARTS; padding belongs to what it follows."""
    table = 24 + sum(len(encode(key, value)) for key, value in file.fields.items())
    starts = [(PARTS[0], 0), (PARTS[1], table)]
    starts += [(part_of(name), info.offset) for name, info in file.tensors.items()]
    ends = [*starts[1:], ("", file.nbytes)]
    return [(part, start, end) for (part, start), (_, end) in zip(starts, ends, strict=True)]


def file_map(runs: Sequence[Run], rows: int = 16) -> Figure:
    """A file from its first byte to its last, wrapped like text into `rows` lines of one length."""
    total = runs[-1][2]
    length = total / rows
    fig, ax = figures.new(size=(7.6, 3.8))
    for part, first, end in runs:
        colour = _COLOURS[PARTS.index(part)]
        inner = np.arange(np.floor(first / length) + 1, np.ceil(end / length)) * length
        for a, b in pairwise([first, *inner, end]):
            row = int((a + b) / 2 // length)
            ax.broken_barh([(a - row * length, b - a)], (row, 0.9), color=colour, linewidth=0)
    ax.set(xlim=(0, length), ylim=(rows, 0), xlabel="bytes within the line")
    ax.set_yticks([0.45, rows - 0.55], labels=["first byte", "last"])
    ax.grid(False)
    used = [part for part in PARTS if any(part == name for name, _, _ in runs)]
    handles = [Patch(color=_COLOURS[PARTS.index(part)], label=part) for part in used]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8)
    return fig


def type_map(types: Mapping[str, str], title: str) -> Figure:
    """Layers (columns) and their matrices (rows), coloured by the bits of the type each gets.

    types: GGUF's tensor name -> type name; what is not in a block, and float32, is left out.
    """
    found = {}
    for name, type_name in types.items():
        inside = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if inside and type_name != "F32":
            found[inside[2], int(inside[1])] = type_name
    roles = list(dict.fromkeys(role for role, _ in found))
    layers = max(layer for _, layer in found) + 1
    kinds = sorted(set(found.values()), key=lambda name: BLOCK_TYPES[name].bits_per_weight)
    fig, ax = figures.new(size=(7.6, 0.9 + 0.3 * len(roles)))
    for (role, layer), type_name in found.items():
        tint = TINTS[(3, 0, 2, 4, 1)[kinds.index(type_name) % 5]]
        place = (layer, roles.index(role))
        ax.add_patch(Rectangle(place, 1, 1, facecolor=tint, edgecolor="white"))
        if layers <= 12:
            ax.text(place[0] + 0.5, place[1] + 0.55, type_name, ha="center", va="center",
                    fontsize=8)  # fmt: skip
    ax.set(xlim=(0, layers), ylim=(len(roles), 0), xlabel="layer")
    ax.set_yticks([row + 0.5 for row in range(len(roles))], labels=roles)
    shown = range(0, layers, 1 if layers <= 12 else 4)
    ax.set_xticks([layer + 0.5 for layer in shown], labels=[str(layer) for layer in shown])
    ax.grid(False)
    ax.tick_params(length=0)
    handles = [
        Patch(color=TINTS[(3, 0, 2, 4, 1)[place % 5]],
              label=f"{name}, {BLOCK_TYPES[name].bits_per_weight:.3g} bits")
        for place, name in enumerate(kinds)
    ]  # fmt: skip
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8)
    ax.set_title(title, loc="left")
    return fig


def cost_of_types(
    results: Mapping[str, tuple[float, float, float]], float_perplexity: float, weights: int
) -> Figure:
    """Perplexity added against the file's megabytes; KL divergence against bits.

    results: type -> (bits per weight, perplexity, KL divergence in nats); weights: of the model.
    """
    fig, (left, right) = figures.new(1, 2, size=(9.6, 4.8), width_ratios=(2, 3))
    looks = {"super-blocks (K)": "o", "blocks of 32 (0, 1)": "s", "levels from a table (IQ)": "D"}
    below = ("Q4_K_S", "Q3_K_S", "Q5_K_S", "Q3_K_M", "IQ4_XS")
    seen = set()
    for name, (bits, perplexity, divergence) in results.items():
        place = 2 if name.startswith("IQ") else 0 if "_K" in name else 1
        label, marker = list(looks.items())[place]
        look = {"marker": marker, "color": figures.PALETTE[place], "linestyle": "none"}
        size, added = bits * weights / 8e6, 100 * (perplexity / float_perplexity - 1)
        left.plot(size, added, **look)
        right.plot(bits, divergence, label=None if label in seen else label, **look)
        seen.add(label)
        offset, side = ((-5, -9), "right") if name in below else ((6, -2), "left")
        right.annotate(name, (bits, divergence), xytext=offset, ha=side, fontsize=8,
                       textcoords="offset points")  # fmt: skip
        if name in ("Q2_K", "Q3_K_S", "Q4_0", "Q6_K", "Q8_0"):
            left.annotate(name, (size, added), xytext=(5, 4), fontsize=8,
                          textcoords="offset points")  # fmt: skip
    left.axhline(0, color="black", linewidth=1)
    left.set(xlabel="file (MB)", ylabel="perplexity added (%)")
    right.set(xlabel="bits per weight", ylabel="KL divergence (nats a token)", yscale="log")
    right.legend(fontsize=8)
    return fig
