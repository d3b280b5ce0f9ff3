"""Make a block method from words: its name, a scheme, and `setting=value` pairs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch

from labkit.core.errors import SchemeError
from labkit.core.scheme import QuantScheme
from labkit.models.methods import METHODS
from labkit.models.methods.protocol import BlockMethod


def method_from_words(
    name: str,
    settings: Sequence[str] = (),
    *,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
) -> BlockMethod:
    """The method `name` of `METHODS`.

    Args:
        settings: "damp=0.05", "act_order=true", ...: fields of the method.
        bits, group_size, symmetric: of its grid; what is None is the method's own choice. A group
            size of 0 is one scale for a whole row.

    Raises SchemeError for an unknown method or setting, and for a value that it cannot have.
    """
    if name not in METHODS:
        raise SchemeError(f"no method {name!r}", remedy=f"Choose from {', '.join(METHODS)}.")
    kind = METHODS[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    grid = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    asked = {key: value for key, value in grid.items() if value is not None}
    values: dict[str, Any] = {}
    if "scheme" in fields:
        values["scheme"] = _scheme(fields["scheme"].default, name, **asked)
    elif wrong := [key for key in asked if key not in fields]:
        raise SchemeError(
            f"{', '.join(wrong)} given for {name}, whose grid is its own",
            remedy=f"It has {', '.join(fields) or 'no settings'}.",
        )
    else:
        values |= asked
    for word in settings:
        key, equals, text = word.partition("=")
        if not equals or key not in fields or key == "scheme":
            raise SchemeError(
                f"{word!r} is no setting of {name}",
                remedy=f"It has {', '.join(key for key in fields if key != 'scheme')}.",
            )
        values[key] = _value(word, text, fields[key])
    return kind(**values)


def _scheme(
    default: Any,
    name: str,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
) -> QuantScheme:
    """The method's scheme with what was asked for in the place of its own."""
    # Full-range grids in groups of 128 are what the formats of the field hold.
    base = default if isinstance(default, QuantScheme) else _usual(name)
    size = base.group_size if group_size is None else group_size
    granularity = "group" if size else base.granularity
    if not size and granularity == "group":
        granularity = "channel"
    return QuantScheme(
        base.bits if bits is None else bits,
        base.symmetric if symmetric is None else symmetric,
        granularity,
        size or None,
        narrow_range=base.narrow_range,
    )


def _usual(name: str) -> QuantScheme:
    return QuantScheme(4, name != "awq", "group", 128, narrow_range=False)


def _value(word: str, text: str, field: dataclasses.Field) -> Any:
    """The text as a value of the setting: of the type of its default, or null where it may be."""
    default = field.default
    if isinstance(default, str):
        return text
    if isinstance(default, torch.dtype):
        found = getattr(torch, text, None)
        fits = isinstance(found, torch.dtype)
    else:
        try:
            found = json.loads(text.lower())
        except ValueError:
            found = object()
        number = int | float if isinstance(default, float) else type(default)
        same_kind = isinstance(found, bool) == isinstance(default, bool)
        fits = isinstance(found, number) and same_kind
        fits = fits or (found is None and "None" in str(field.type))
    if not fits:
        raise SchemeError(
            f"{word!r} cannot be read", remedy=f"A value such as {default!r} is expected."
        )
    return type(default)(found) if isinstance(default, float) and found is not None else found
