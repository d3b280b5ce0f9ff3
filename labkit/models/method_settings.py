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
    name: str, scheme: QuantScheme | None, settings: Sequence[str] = ()
) -> BlockMethod:
    """The method `name` of `METHODS`.

    Args:
        scheme: the grid; None for the method's own. A method without a scheme refuses one.
        settings: "damp=0.05", "act_order=true", ...: fields of the method.

    Raises SchemeError for an unknown method or setting, and for a value that cannot be read.
    """
    if name not in METHODS:
        raise SchemeError(f"no method {name!r}", remedy=f"Choose from {', '.join(METHODS)}.")
    kind = METHODS[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    if scheme is not None:
        if "scheme" not in fields:
            raise SchemeError(
                f"a scheme ({scheme}) for {name}, which has its own",
                remedy=f"Leave bits and group size out; it has {', '.join(fields)}.",
            )
        values["scheme"] = scheme
    for word in settings:
        key, equals, text = word.partition("=")
        if not equals or key not in fields or key == "scheme":
            raise SchemeError(
                f"{word!r} is no setting of {name}",
                remedy=f"It has {', '.join(key for key in fields if key != 'scheme')}.",
            )
        values[key] = _value(word, text, fields[key].default)
    if "scheme" in fields and "scheme" not in values and _required(fields["scheme"]):
        values["scheme"] = QuantScheme(4, True, "group", 128, narrow_range=False)
    return kind(**values)


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _value(word: str, text: str, default: Any) -> Any:
    """The text as the type of the setting's default."""
    if isinstance(default, torch.dtype):
        found = getattr(torch, text, None)
    elif isinstance(default, str):
        return text
    else:
        try:
            found = json.loads(text.lower())
        except ValueError:
            found = None
    fits = default is None or default is dataclasses.MISSING or isinstance(found, type(default))
    if isinstance(default, float) and type(found) is int:
        return float(found)
    if isinstance(found, bool) != isinstance(default, bool) and default is not None:
        fits = False
    if not fits:
        raise SchemeError(
            f"{word!r} cannot be read", remedy=f"A value such as {default!r} is expected."
        )
    return found
