"""The study's middle: how sensitive each layer is, and what that makes of a size limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from labkit.evaluate.classification import damage, labels_of, logits_of, score_logits
from labkit.evaluate.sensitivity import Sensitivity, layer_sensitivity
from labkit.models.mixed_precision import (
    Double,
    RoundedInput,
    choosable_layers,
    fixed_bytes,
    options_of,
    static_inputs,
    with_choices,
)
from labkit.models.text_classifier import TextBatch
from labkit.quantize.mixed import allocate

if TYPE_CHECKING:
    from labkit.study.encoder import Lab

BATCHES = 4  # of validation texts on which layers are measured: 128 texts of all lengths
# Limits: mean bits of a code; the scales of INT4 everywhere come on top.
LIMITS = (4.1, 4.5, 5.0, 6.0, 8.1)


def measure(
    lab: Lab, doubles: dict[str, dict[str, Double]], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Sensitivities on validation modules, allocations by them, and their F1 on held-out ones."""
    with_inputs = add_rounded_inputs(lab, doubles)
    rows = layer_sensitivity(
        lab.model, choosing(lab), with_inputs, lambda *at: tell(f"{at[1]}/{at[2]} {at[0]}")
    )
    return {
        "sensitivity": [{**asdict(row), **asdict(row.damage)} for row in rows],
        "ranking": ranked(rows),
        "float_bytes": 4 * sum(p.numel() for p in lab.model.parameters()),
        "fixed_bytes": fixed_bytes(lab.model),
        "allocations": allocations(lab, doubles, rows, tell),
    }


def choosing(lab: Lab) -> list[TextBatch]:
    """The validation texts that layers are chosen on: a few batches of short to long texts."""
    return lab.validation[1 :: max(1, len(lab.validation) // BATCHES)][:BATCHES]


def add_rounded_inputs(lab: Lab, doubles: Mapping[str, dict[str, Double]]):
    """The same with "w8a8" beside: the int8 weight, and inputs rounded by a calibrated range."""
    inputs = static_inputs(lab.model, lab.batches[:: max(1, len(lab.batches) // 8)])
    found = {}
    for name, row in doubles.items():
        found[name] = dict(row)
        if name in inputs:
            layer, size = row["int8"]
            found[name]["w8a8"] = (RoundedInput(layer, inputs[name]), size)
    return found


def ranked(rows: list[Sensitivity], choice: str = "int4") -> list[str]:
    """Layers by what `choice` does to the answers, worst first."""
    own = [row for row in rows if row.choice == choice]
    return [row.layer for row in sorted(own, key=lambda row: -row.damage.kl)]


def allocations(
    lab: Lab,
    doubles: dict[str, dict[str, Double]],
    rows: list[Sensitivity],
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One precision for all, then the best mixture at each limit, then the worst one at a limit."""
    damages = {(row.layer, row.choice): row.damage.kl for row in rows}
    options = options_of(doubles, damages)
    weights = sum(choosable_layers(lab.model)[name].weight.numel() for name in doubles)
    smallest = sum(row["int4"][1] for row in doubles.values())

    def limit(bits: float) -> int:
        return smallest + int(weights * (bits - 4) / 8)

    plans = [
        (f"{choice} everywhere", dict.fromkeys(doubles, choice))
        for choice in ("fp16", "int8", "int4")
    ]
    for bits in LIMITS:
        found = allocate(options, limit(bits))
        plans.append((f"mixed, {bits:g} bits", dict(found.choices)))
    # The opposite of good sense: the same budget spent where it helps least.
    upside_down = {pair: -value for pair, value in damages.items()}
    found = allocate(options_of(doubles, upside_down), limit(5.0))
    plans.append(("mixed, 5 bits, upside down", dict(found.choices)))
    return [_row(lab, doubles, damages, what, plan, tell) for what, plan in plans]


def _row(
    lab: Lab,
    doubles: dict[str, dict[str, Double]],
    damages: Mapping[tuple[str, str], float],
    what: str,
    plan: dict[str, str],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    model = with_choices(lab.model, doubles, plan)
    size = sum(doubles[name][choice][1] for name, choice in plan.items())
    heldout = logits_of(model, lab.heldout)
    labels = labels_of(choosing(lab))
    exact, rounded = logits_of(lab.model, choosing(lab)), logits_of(model, choosing(lab))
    row = {
        "what": what,
        "choices": plan,
        "bytes": size + fixed_bytes(lab.model),
        "expected_kl": sum(damages[pair] for pair in plan.items()),
        "validation": asdict(damage(exact, rounded, labels)),
        **asdict(score_logits(heldout, labels_of(lab.heldout))),
    }
    tell(f"{what}: {row['bytes'] / 1e6:.2f} MB, F1 {row['macro_f1']:.3f}")
    return row
