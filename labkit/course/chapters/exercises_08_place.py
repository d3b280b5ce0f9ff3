"""Exercise 08.2: where in a layer the rounding belongs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from labkit.core.scheme import QuantScheme
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight
from labkit.training.layers import QatLinear
from labkit.training.lsq import LearnedScale

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def qat_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x_scale: torch.Tensor,
    w_scale: torch.Tensor,
) -> torch.Tensor:
    """[n, out]: `QatLinear` with the scales given, inputs in 8 bits and weights in 4."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    inputs = LearnedScale(QuantScheme(8, True, "tensor", narrow_range=False))
    weights = LearnedScale(QuantScheme(4, narrow_range=False), tuple(w_scale.shape))
    for learned, scale in ((inputs, x_scale), (weights, w_scale)):
        learned.scale.copy_(scale)
        learned.seen.fill_(1)
    return QatLinear.from_float(layer, weights, inputs).eval()(x)


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for rows, columns in shapes(rng, 12, largest=8):
        w = weight(rng, rows, columns)
        x = weight(rng, int(rng.integers(2, 5)), columns)
        # Narrow enough that a few weights and inputs are clipped.
        w_scale = w.abs().amax(dim=1, keepdim=True) / 6
        x_scale = x.abs().max() / float(rng.uniform(60, 160))
        bias = torch.from_numpy(rng.standard_normal(rows).astype(np.float32))
        yield x, w, bias, x_scale, w_scale


def _bias_is_exact(trial: Trial) -> str | None:
    """what is added to the bias arrives at the output, whole"""
    moved = trial.call(
        trial["x"], trial["weight"], trial["bias"] + 1e-3, trial["x_scale"], trial["w_scale"]
    )
    change = (moved - trial.got).flatten()
    if bool(((change - 1e-3).abs() > 2e-5).any()):
        return f"a bias larger by 0.001 changes an output by {float(change.abs().max()):.2g}"
    return None


PLACE = Exercise(
    id="08.2",
    title="Where the rounding goes",
    minutes=8,
    difficulty=2,
    goal="put fake quantization where the integer layer will round",
    stub='''
    def qat_linear(x, weight, bias, x_scale, w_scale):
        """[n, out]: the layer as it will compute with 8-bit inputs and 4-bit weights."""

        def fake(t, scale, bits):
            """t on a symmetric grid of `bits` bits."""
            codes = torch.round(t / scale)
            return scale * codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

        ...
    ''',
    solution='''
    def qat_linear(x, weight, bias, x_scale, w_scale):
        """[n, out]: the layer as it will compute with 8-bit inputs and 4-bit weights."""

        def fake(t, scale, bits):
            """t on a symmetric grid of `bits` bits."""
            codes = torch.round(t / scale)
            return scale * codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

        return fake(x, x_scale, 8) @ fake(weight, w_scale, 4).T + bias
    ''',
    reference=qat_linear,
    answer_key=QatLinear.forward,
    generate=_cases,
    bounds=(_bias_is_exact, matches_reference(rtol=1e-4, atol=1e-4)),
    mutants=(
        Mutant(
            "You round after the product. The integer layer multiplies what is already rounded: "
            "fake quantization stands before the product, on both of its inputs.",
            swap=(
                "fake(x, x_scale, 8) @ fake(weight, w_scale, 4).T + bias",
                "fake(x @ weight.T + bias, x_scale, 8)",
            ),
        ),
        Mutant(
            "You round the product before the bias is added. It stays an int32 sum: nothing is "
            "rounded behind the product.",
            swap=(
                "fake(x, x_scale, 8) @ fake(weight, w_scale, 4).T + bias",
                "fake(x @ weight.T, x_scale, 8) + bias",
            ),
        ),
        Mutant(
            "You round the bias as well. It is added to the 32-bit sum, where there is room: one "
            "number a channel costs nothing, and an error in it shifts every output.",
            swap=("+ bias", "+ fake(bias, x_scale, 8)"),
        ),
        Mutant(
            "You round the weights alone. This layer's inputs will be 8-bit codes.",
            swap=("fake(x, x_scale, 8)", "x"),
        ),
        Mutant(
            "You round the inputs alone. The weights are what is stored in 4 bits.",
            swap=("fake(weight, w_scale, 4)", "weight"),
        ),
        Mutant(
            "You round the output on top. The next layer rounds its own inputs, with its own "
            "scale.",
            swap=(
                "fake(x, x_scale, 8) @ fake(weight, w_scale, 4).T + bias",
                "fake(fake(x, x_scale, 8) @ fake(weight, w_scale, 4).T + bias, x_scale, 8)",
            ),
        ),
        Mutant(
            "The bias is missing.",
            swap=("fake(weight, w_scale, 4).T + bias", "fake(weight, w_scale, 4).T"),
        ),
        Mutant(
            "Inputs have 8 bits and weights 4; you have it the other way round.",
            swap=(
                "fake(x, x_scale, 8) @ fake(weight, w_scale, 4)",
                "fake(x, x_scale, 4) @ fake(weight, w_scale, 8)",
            ),
        ),
    ),
    hints=(
        "The chip holds codes of x and of the weight, multiplies them, and sums in 32 bits.",
        "Everything that the multiplier reads is rounded; nothing that comes behind it is.",
        "fake(x, x_scale, 8) @ fake(weight, w_scale, 4).T, then the bias as it is.",
    ),
)
