"""Which layer loses how much: the outputs of every rounded layer against those of the float net."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.core.metrics import cosine, sqnr_db
from labkit.training.static import without_rounding


@dataclass(frozen=True)
class LayerError:
    """A layer's output (its batch norm folded in) against the float net's.

    Args:
        own_db: signal to noise where the layer reads what the float net gives it: what rounding
            this layer alone costs.
        total_db, cosine: where it reads what the rounded layers before it give: with their errors.
    """

    name: str
    own_db: float
    total_db: float
    cosine: float


@torch.no_grad()
def layer_errors(prepared: nn.Module, pixels: Tensor) -> list[LayerError]:
    """One row for each layer, in the order in which the net calls them.

    Args:
        prepared: calibrated, or trained: `labkit.training.static.prepare_static`.
        pixels: images [n, channels, height, width] that it was not calibrated with.

    Raises:
        CalibrationError: a range that is not known yet.
    """
    layers = {n: m for n, m in prepared.named_modules() if hasattr(m, "weight_quant")}
    floating = without_rounding(prepared)
    read, wanted = _flow(floating, {n: floating.get_submodule(n) for n in layers}, pixels)
    _, given = _flow(prepared.eval(), layers, pixels)
    return [
        LayerError(
            name,
            sqnr_db(wanted[name], layers[name](read[name])),
            sqnr_db(wanted[name], given[name]),
            cosine(wanted[name], given[name]),
        )
        for name in wanted
    ]


def _flow(
    model: nn.Module, layers: dict[str, nn.Module], pixels: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of layers, in the order of the calls."""
    read: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}

    def recording(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read[name], given[name] = inputs[0], output

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(recording(name)).remove)
        model(pixels)
    return read, given
