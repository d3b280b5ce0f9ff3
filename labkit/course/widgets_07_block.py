"""Notebook 07: choose a byte of a Q4_K super-block, and read what it is and means."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets
import numpy as np

from labkit.course import figures
from labkit.course.widgets_07_pictures import block_map
from labkit.quantize import gguf
from labkit.quantize.gguf_types import BLOCK_TYPES
from labkit.quantize.kquants import unpack_pairs

Q4_K = BLOCK_TYPES["Q4_K"]


class BlockExplorer(widgets.VBox):
    """A slider over the 144 bytes; `picture` holds the map, `text` what the chosen byte means.

    Args:
        block: uint8 [144], one Q4_K super-block.
    """

    def __init__(self, block: np.ndarray) -> None:
        self._block = np.ascontiguousarray(block, np.uint8)
        self._weights = gguf.dequantize(self._block, "Q4_K", loop="plain")[0]
        self.byte = widgets.IntSlider(0, min=0, max=Q4_K.nbytes - 1, description="byte")
        self.byte.layout = widgets.Layout(width="40em")
        self.text, self.picture = widgets.HTML(), widgets.HTML()
        self.byte.observe(self._redraw, names="value")
        super().__init__([self.byte, self.text, self.picture])
        self._redraw()

    @property
    def meaning(self) -> str:
        """What the chosen byte says, in words and numbers."""
        at, value = self.byte.value, int(self._block[self.byte.value])
        low, high = value & 15, value >> 4
        if at < 4:
            name, first = ("d", 0) if at < 2 else ("dmin", 2)
            number = float(self._block[first : first + 2].view("<f2")[0])
            part = ("low", "high")[at % 2]
            of = "scales" if at < 2 else "mins"
            return f"{part} byte of {name} = {number:.4g}, the float16 that the {of} are times"
        if at < 16:
            return self._scale_meaning(at - 4, value)
        half, place = divmod(at - 16, 32)
        first = 64 * half + place
        return (
            f"low bits: code {low} of weight {first}, which is {self._weights[first]:+.4f}; "
            f"high bits: code {high} of weight {first + 32}, which is "
            f"{self._weights[first + 32]:+.4f}"
        )

    def _scale_meaning(self, place: int, value: int) -> str:
        packed = self._block[None, 4:16]
        scales, mins = (part[0] for part in unpack_pairs(packed))
        index = place % 4
        if place < 8:
            what, numbers = ("scale", scales) if place < 4 else ("min", mins)
            return (
                f"low 6 bits: {what} {index} = {numbers[index]}; high 2 bits: {value >> 6}, the "
                f"high bits of {what} {index + 4} = {numbers[index + 4]}"
            )
        return (
            f"low 4 bits: {value & 15}, those of scale {index + 4} = {scales[index + 4]}; "
            f"high 4 bits: {value >> 4}, those of min {index + 4} = {mins[index + 4]}"
        )

    def _redraw(self, *_: Any) -> None:
        at = self.byte.value
        words = f"byte {at} = {int(self._block[at]):#04x}: {self.meaning}"
        self.text.value = f"<b>{html.escape(words)}</b>"
        fig = block_map(Q4_K, self._block.tobytes(), at)
        self.picture.value = figures.to_html(fig, f"The 144 bytes of a Q4_K super-block; {words}.")
