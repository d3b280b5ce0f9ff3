"""Mixed precision: how many bits for each layer, so that the whole fits and the damage is least.

    minimise   Σ damage(layer, choice)    with    Σ bytes(layer, choice) <= limit

one choice a layer: the multiple-choice knapsack (Sinha and Zoltners 1979; for layers of a net
HAWQ-V3, Yao et al. 2021, section 3.3, hands the same problem to an integer programme). The answer
here is exact. Layer by layer we keep every pair of total (bytes, damage) that no other beats in
both: nets repeat a few shapes, so totals coincide and the pairs stay few.

That damages *add up* is an assumption: each was measured with all other layers exact. Measure the
allocation itself before believing the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from labkit.core.errors import SchemeError

_MOST_PAIRS = 2_000_000


@dataclass(frozen=True)
class Option:
    """What a choice costs: `bytes` stored (whole, >= 0), and `damage` in any unit that adds up."""

    bytes: int
    damage: float


@dataclass(frozen=True)
class Allocation:
    """The choice of each layer, and the sums over all of them."""

    choices: Mapping[str, str]
    bytes: int
    damage: float


def allocate(
    layers: Mapping[str, Mapping[str, Option]], limit: int, *, unit: int = 1
) -> Allocation:
    """The choices of least total damage among those of at most `limit` bytes.

    Args:
        layers: layer -> name of a choice -> what it costs; not every layer has every choice.
        limit: bytes for all layers together.
        unit: count sizes in steps of this many bytes, each rounded up. 1 is exact; a larger one is
            faster where sizes are all different. The result never exceeds the limit, and no
            allocation of at most `limit - unit · len(layers)` bytes is better.

    Of equal damage the smaller is taken.

    Raises:
        SchemeError: no layers or a layer without choices, a size or damage that is no cost, a
            limit below the smallest total (both are named), or too many different totals.
    """
    _check(layers, unit)
    smallest = sum(min(option.bytes for option in row.values()) for row in layers.values())
    room = limit // unit
    if sum(min(_steps(option, unit) for option in row.values()) for row in layers.values()) > room:
        rounded = "" if unit == 1 else f", counted in steps of {unit},"
        raise SchemeError(
            f"the limit is {limit} bytes; the smallest choice of every layer{rounded} "
            f"takes {smallest}",
            where="allocate",
            remedy="Raise the limit, or offer choices of fewer bits.",
        )
    history, sizes, damages = [], np.zeros(1, np.int64), np.zeros(1)
    for name, row in layers.items():
        sizes, damages, parent, choice = _extend(sizes, damages, list(row.values()), room, unit)
        if len(sizes) > _MOST_PAIRS:
            raise SchemeError(
                f"more than {_MOST_PAIRS} different totals at layer {name!r}",
                where="allocate",
                remedy="Give a larger unit, such as limit // 10000.",
            )
        history.append((name, list(row), parent, choice))
    choices, at = {}, len(sizes) - 1  # the last pair is the one of least damage
    for name, names, parent, choice in reversed(history):
        choices[name] = names[choice[at]]
        at = parent[at]
    chosen = [layers[name][choices[name]] for name in layers]
    return Allocation(
        {name: choices[name] for name in layers},
        sum(option.bytes for option in chosen),
        math.fsum(option.damage for option in chosen),
    )


def _extend(
    sizes: np.ndarray, damages: np.ndarray, options: list[Option], room: int, unit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs with one more layer, those that another beats taken out.

    Sizes come back rising, damages falling; `parent` and `choice` say what each was made of.
    """
    new_sizes = np.concatenate([sizes + _steps(option, unit) for option in options])
    new_damages = np.concatenate([damages + option.damage for option in options])
    order = np.lexsort((new_damages, new_sizes))
    order = order[new_sizes[order] <= room]
    sorted_damages = new_damages[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_damages)[:-1]])
    kept = order[sorted_damages < best_before]
    choice, parent = np.divmod(kept, len(sizes))
    return new_sizes[kept], new_damages[kept], parent, choice


def _steps(option: Option, unit: int) -> int:
    return -(-option.bytes // unit)


def _check(layers: Mapping[str, Mapping[str, Option]], unit: int) -> None:
    if not layers or unit < 1:
        raise SchemeError(f"{len(layers)} layers, unit {unit}", "allocate", "Both are at least 1.")
    for layer, row in layers.items():
        if not row:
            raise SchemeError("a layer without choices", layer, "Offer at least one.")
        for choice, option in row.items():
            whole = isinstance(option.bytes, int) and option.bytes >= 0
            if not whole or not math.isfinite(option.damage):
                raise SchemeError(
                    f"{option}",
                    f"layer {layer!r}, choice {choice!r}",
                    "Bytes are whole and not negative, the damage is a finite number.",
                )
