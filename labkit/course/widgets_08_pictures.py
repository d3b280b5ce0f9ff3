"""Pictures of chapter 08: where rounding stands in a layer, and what training wins back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from labkit.course import figures

DOMAINS = ("stdlib-code", "stdlib-prose")


def layer_diagram() -> Figure:
    """A linear layer as it is trained: what is rounded, what is not, and which way gradients go."""
    fig, ax = figures.new(size=(8.2, 3.0))
    ax.set(xlim=(0, 10), ylim=(0, 4))
    ax.set_axis_off()
    boxes = {
        "inputs x": (0.9, 3, "#d9d9d9"),
        "weight W\n(float32)": (0.9, 1, "#d9d9d9"),
        "fake\nquantization": (3.2, 3, "#f4b183"),
        "fake \nquantization": (3.2, 1, "#f4b183"),
        "product": (5.6, 2, "#b7d7a8"),
        "+ bias\n(not rounded)": (7.6, 2, "#b7d7a8"),
        "output": (9.3, 2, "#d9d9d9"),
    }
    for text, (x, y, tint) in boxes.items():
        ax.add_patch(
            FancyBboxPatch((x - 0.62, y - 0.4), 1.24, 0.8, boxstyle="round,pad=0.06", fc=tint,
                           ec="none")
        )  # fmt: skip
        ax.text(x, y, text, ha="center", va="center", fontsize=9)
    for start, end in (
        ((1.6, 3), (2.5, 3)),
        ((1.6, 1), (2.5, 1)),
        ((3.9, 3), (5.0, 2.2)),
        ((3.9, 1), (5.0, 1.8)),
        ((6.3, 2), (6.9, 2)),
        ((8.3, 2), (8.6, 2)),
    ):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "linewidth": 1.4})
    back = {"arrowstyle": "->", "linewidth": 1.4, "linestyle": "--", "color": figures.PALETTE[0]}
    for start, end in (((5.0, 1.5), (3.9, 0.7)), ((2.5, 0.7), (1.6, 0.7))):
        ax.annotate("", end, start, arrowprops=back)
    ax.text(3.2, 0.2, "gradient: as if nothing had been rounded", color=figures.PALETTE[0],
            ha="center", fontsize=9)  # fmt: skip
    return fig


def bars_of_perplexity(values: Mapping[str, float], floor: float) -> Figure:
    """Perplexities of one text, one bar each, on a log scale; a line at that of the float model."""
    fig, ax = figures.new(size=(7.0, 3.2))
    names = list(values)
    ax.bar(names, list(values.values()), width=0.6)
    for place, value in enumerate(values.values()):
        ax.annotate(f"{value:.1f}", (place, value), ha="center", xytext=(0, 3),
                    textcoords="offset points", fontsize=9)  # fmt: skip
    ax.axhline(floor, color="black", linewidth=1, linestyle=":")
    ax.set(ylabel="perplexity", yscale="log")
    ax.set_ylim(0.7 * floor, 2 * max(values.values()))
    return fig


def recovery(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Perplexity against steps as a multiple of GPTQ's, one panel a run.

    A curve is measured on less text than its ends are, so each is shown relative to its own start:
    the line of FP32 is the ratio on the long text.
    """
    fig, axes = figures.new(1, len(runs), size=(3.1 * len(runs), 3.6), squeeze=False)
    for ax, run in zip(axes[0], runs, strict=True):
        for place, domain in enumerate(DOMAINS):
            steps, values = relative_curve(run, domain)
            name, colour = domain.removeprefix("stdlib-"), figures.PALETTE[place]
            ax.plot(steps, values, marker="o", color=colour, label=f"{name}, trained")
            ax.axhline(run["fp32"][domain] / run["gptq"][domain], color=colour, linestyle=":",
                       linewidth=1.2, label=f"{name}, FP32")  # fmt: skip
        ax.axhline(1, color="black", linewidth=1, label="GPTQ")
        ax.set_title(run["what"], fontsize=9)
        ax.set_xlabel("steps")
    axes[0][0].set_ylabel("perplexity, as a part of GPTQ's")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=9)
    return fig


def relative_curve(run: Mapping[str, Any], domain: str) -> tuple[list[int], list[float]]:
    """Steps, and perplexity there over that of the first point."""
    points = run["curve"]
    return [p["step"] for p in points], [p[domain] / points[0][domain] for p in points]


def recovery_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """What each run starts from, ends at, and how much of the gap it closed, as aligned text."""
    lines = [f"{'':36}{'text':8}{'FP32':>7}{'GPTQ':>8}{'trained':>9}{'gap closed':>12}"]
    for run in runs:
        for domain in DOMAINS:
            kinds = [run[kind][domain] for kind in ("fp32", "gptq", "qat")]
            first = run["what"] if domain == DOMAINS[0] else ""
            lines.append(
                f"{first:36}{domain.removeprefix('stdlib-'):8}{kinds[0]:7.2f}{kinds[1]:8.2f}"
                f"{kinds[2]:9.2f}{run['closed'][domain]:12.0%}"
            )
    return "\n".join(lines)


def task_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The share of right answers in each task, as aligned text."""
    names = list(runs[0]["tasks"]["fp32"])
    lines = [f"{'':45}" + "".join(f"{name:>9}" for name in names)]
    rows = [("FP32", runs[0]["tasks"]["fp32"])]
    for run in runs:
        rows += [(f"{run['what']}, GPTQ", run["tasks"]["gptq"])]
        rows += [(f"{run['what']}, trained", run["tasks"]["qat"])]
    return "\n".join(
        lines + [f"{what:45}" + "".join(f"{found[n]:9.0%}" for n in names) for what, found in rows]
    )
