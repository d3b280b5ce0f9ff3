"""Flip the bits of a number and see what it means: the widget of notebook 01.

`read` says what a code stands for, in words; `BitExplorer` is buttons around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from labkit.core.dtypes import (
    FloatFormat,
    IntFormat,
    decode,
    encode,
    fields,
    get_format,
    neighbours,
)
from labkit.course import figures

FORMATS_SHOWN = (
    "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "e8m0", "nf4",
    "int8", "int4", "int3", "int2",
)  # fmt: skip
FIELD_COLOURS = {"sign": "#D55E00", "exponent": "#0072B2", "mantissa": "#009E73"}
NEIGHBOURS_SHOWN = 4


@dataclass(frozen=True)
class Reading:
    """What one code says. `kind` is "normal", "subnormal", "zero", "infinity", "NaN", ..."""

    sign: str
    exponent: str
    mantissa: str
    value: float
    kind: str
    formula: str
    below: float
    above: float


def read(code: int, name: str) -> Reading:
    """Take a code of the format `name` apart. Raises PackingError for a code out of range."""
    fmt = get_format(name)
    parts = fields(code, fmt)
    value = decode(code, fmt)
    kind, formula = _meaning(code, name, value)
    below, above = (math.nan, math.nan) if math.isnan(value) else neighbours(value, fmt)
    return Reading(*parts, value, kind, formula, below, above)


def _meaning(code: int, name: str, value: float) -> tuple[str, str]:
    """Kind of number, and the sum that gives it."""
    fmt = get_format(name)
    if isinstance(fmt, IntFormat):
        top = 2 ** (fmt.bits - 1)
        return "integer", f"-{top} + {code - top}" if code >= top else f"{code}"
    if not isinstance(fmt, FloatFormat):
        return "codebook", f"entry {code} of {2**fmt.bits}"
    if not math.isfinite(value):
        return ("NaN" if math.isnan(value) else "infinity"), "a code kept for it"
    parts = fields(code, fmt)
    field = int(parts.exponent, 2)
    normal = field > 0 or not fmt.subnormals
    kind = "normal" if normal else ("subnormal" if value else "zero")
    fraction = int(parts.mantissa or "0", 2) / 2**fmt.mantissa_bits
    sign = "-" if parts.sign == "1" else ""
    exponent = f"({field} - {fmt.bias})" if normal else f"(1 - {fmt.bias})"
    return kind, f"{sign}{normal + fraction:.7g} x 2^{exponent}"


def nearby(value: float, name: str, count: int = NEIGHBOURS_SHOWN) -> list[float]:
    """`value` and up to `count` finite numbers of the format on either side, ascending."""
    numbers = [value]
    for side in (0, 1):
        x = value
        for _ in range(count):
            x = neighbours(x, name)[side]
            if math.isinf(x):
                break
            numbers.append(x)
    return sorted(numbers)


def number_line(reading: Reading, name: str, wanted: float | None = None) -> Figure:
    """The code's number between its neighbours; `wanted` marks the number it was rounded from."""
    fig, ax = figures.new(size=(6.4, 1.1))
    ax.set_yticks([])
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    if not math.isfinite(reading.value):
        ax.text(
            0.5, 0.5, f"{reading.kind}: no place on the line", ha="center", transform=ax.transAxes
        )
        ax.set_xticks([])
        return fig
    numbers = nearby(reading.value, name)
    ax.vlines(numbers, 0, 0.6, color="#666666", linewidth=1.5)
    ax.vlines([reading.value], 0, 1, color=figures.PALETTE[0], linewidth=4)
    if wanted is not None and numbers[0] <= wanted <= numbers[-1]:
        ax.plot([wanted], [0.8], "v", color=figures.PALETTE[1], markersize=9)
    ax.set(ylim=(0, 1.1), xlabel=f"numbers that {name} can say (triangle: the number asked for)")
    return fig


class BitExplorer(widgets.VBox):
    """A format, a number and one button a bit. `code`, `reading` and `text` say where it stands."""

    def __init__(self, name: str = "fp8_e4m3", number: float = 0.3) -> None:
        self._format = widgets.Dropdown(options=FORMATS_SHOWN, value=name, description="format")
        self._number = widgets.FloatText(value=number, description="number", step=None)
        self._bits = widgets.HBox(layout=widgets.Layout(flex_flow="row wrap"))
        self._words = widgets.HTML()
        self._picture = widgets.HTML()
        self.wanted: float | None = number
        self._format.observe(self._on_number, names="value")
        self._number.observe(self._on_number, names="value")
        super().__init__(
            [widgets.HBox([self._format, self._number]), self._bits, self._words, self._picture]
        )
        self._on_number({})

    def flip(self, position: int) -> None:
        """Flip the bit at `position`, counted from the left, as a click on it does."""
        bits = get_format(self._format.value).bits
        self.wanted = None
        self.show_code(self.code ^ (1 << (bits - 1 - position)))

    def choose(self, name: str, number: float | None = None) -> None:
        """Change the format, and the number if one is given, as the two fields do."""
        self._format.value = name
        if number is not None:
            self._number.value = number

    def show_code(self, code: int) -> None:
        """Show what `code` means in the chosen format."""
        name = self._format.value
        self.code, self.reading = code, read(code, name)
        self._bits.children = self._buttons(self.reading)
        self.text = describe(self.reading, name, self.wanted)
        self._words.value = "<br>".join(self.text.splitlines())
        picture = number_line(self.reading, name, self.wanted)
        self._picture.value = figures.to_html(picture, alt=f"Number line. {self.text}")

    def _on_click(self, position: int, button: widgets.Button) -> None:
        self.flip(position)

    def _on_number(self, change: dict[str, Any]) -> None:
        self.wanted = self._number.value
        self.show_code(encode(self.wanted, self._format.value))

    def _buttons(self, reading: Reading) -> list[widgets.Button]:
        buttons = []
        for field in ("sign", "exponent", "mantissa"):
            for bit in getattr(reading, field):
                button = widgets.Button(
                    description=bit,
                    tooltip=f"flip this bit ({field})",
                    layout=widgets.Layout(width="26px", padding="0", margin="1px"),
                    style={"button_color": FIELD_COLOURS[field], "text_color": "white"},
                )
                button.on_click(partial(self._on_click, len(buttons)))
                buttons.append(button)
        return buttons


def describe(reading: Reading, name: str, wanted: float | None = None) -> str:
    """Two or three lines of text: the fields, the number, its neighbours."""
    bits = f"{reading.sign or '-'} | {reading.exponent or '-'} | {reading.mantissa or '-'}"
    first = f"{bits}   (sign | exponent | mantissa)"
    if not math.isfinite(reading.value):
        return f"{first}\n{reading.kind}: {reading.formula}"
    number = f"{reading.value:.9g} = {reading.formula}, {reading.kind}"
    if wanted is not None:
        number += f"; asked for {wanted:.9g}, off by {abs(reading.value - wanted):.3g}"
    return f"{first}\n{number}\nneighbours {reading.below:.9g} and {reading.above:.9g}"
