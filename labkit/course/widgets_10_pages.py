"""Notebook 10: a server's memory, slot by slot, with reserved runs and with pages."""

from __future__ import annotations

from functools import cache
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from labkit.course import figures
from labkit.nn.paged_serving import Moment, Paging, Request, Reserving, random_requests, serve

SLOTS, LONGEST, STEPS = 1024, 128, 120
_WIDTH = 64
_MANY = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c564b", "#bcbd22")


@cache
def requests(seed: int = 0) -> tuple[Request, ...]:
    """What waits at the door."""
    return tuple(random_requests(400, seed, LONGEST))


@cache
def moments(page_size: int) -> tuple[Moment, ...]:
    """A run of the server with pages; with `page_size` 0 it reserves the longest for each."""
    store = Paging(SLOTS, page_size) if page_size else Reserving(SLOTS, LONGEST)
    return tuple(serve(list(requests()), store, STEPS))


@cache
def exact_moments() -> tuple[Moment, ...]:
    """The server that knows each length beforehand, and reserves just that."""
    return tuple(serve(list(requests()), Reserving(SLOTS), STEPS))


def mean(which: tuple[Moment, ...], what: str) -> float:
    """Mean over the later half of a run of `running`, `used` or `reserved`."""
    return float(np.mean([getattr(moment, what) for moment in which[STEPS // 2 :]]))


def draw_memory(ax: Any, moment: Moment, title: str) -> None:
    """The memory as a map of slots: white free, grey reserved but empty, colours by sequence."""
    owner = moment.owner
    cells = np.where(owner >= 0, 2 + owner % len(_MANY), np.where(owner == -2, 1, 0))
    padded = np.zeros(-(-len(cells) // _WIDTH) * _WIDTH)
    padded[: len(cells)] = cells
    colours = ListedColormap(["white", "#bdbdbd", *_MANY])
    ax.imshow(padded.reshape(-1, _WIDTH), cmap=colours, vmin=-0.5, vmax=1.5 + len(_MANY),
              aspect="auto")  # fmt: skip
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(True)


class PageExplorer(widgets.VBox):
    """Sliders for the moment and the page size; both memories side by side."""

    def __init__(self) -> None:
        self.step = widgets.IntSlider(40, min=0, max=STEPS - 1, description="step")
        self.page_size = widgets.SelectionSlider(
            options=[1, 4, 16, 64, 128], value=16, description="page size"
        )
        self.picture = widgets.HTML()
        for control in (self.step, self.page_size):
            control.observe(self._redraw, names="value")
        super().__init__([widgets.HBox([self.step, self.page_size]), self.picture])
        self._redraw()

    @property
    def both(self) -> tuple[Moment, Moment]:
        """The moment with reserved runs, and with pages."""
        step = self.step.value
        return moments(0)[step], moments(self.page_size.value)[step]

    def _draw(self) -> Figure:
        fig, axes = figures.new(1, 2, size=(8.4, 2.8))
        names = ("longest reserved", f"pages of {self.page_size.value}")
        for ax, moment, name in zip(axes, self.both, names, strict=True):
            draw_memory(ax, moment, f"{name}: {moment.running} run, {moment.used / SLOTS:.0%} used")
        return fig

    def _redraw(self, *_: Any) -> None:
        reserved, paged = self.both
        alt = (
            f"Step {self.step.value}: {reserved.running} sequences run with reserved memory, "
            f"{reserved.used} of {SLOTS} slots used; {paged.running} with pages of "
            f"{self.page_size.value}, {paged.used} used."
        )
        self.picture.value = figures.to_html(self._draw(), alt)
