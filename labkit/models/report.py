"""What was done to one layer, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from labkit.core.metrics import sqnr_db as weight_sqnr_db
from labkit.core.quantized import Quantized


@dataclass(frozen=True)
class LayerReport:
    """What was done to one layer.

    Args:
        name: the layer's full name in the model.
        method: what quantized it; "kept" for a layer that stays in floating point.
        quantized: its integers; None where they lie on disk (`QuantizedModel.layers` reads them)
            or where the layer was kept.
        sqnr_db: signal-to-noise ratio of the weights, in dB.
        damp: GPTQ's damping that was used, as a part of the Hessian's mean diagonal.
        tokens: calibration tokens that the layer saw.
        loss: error of the layer's outputs on the calibration inputs, as the method defines it.
        note: whatever departed from what was asked for, and why; "" when nothing did.
    """

    name: str
    method: str
    quantized: Quantized | None
    sqnr_db: float
    damp: float | None = None
    tokens: int | None = None
    loss: float | None = None
    note: str = ""

    def figures(self) -> dict[str, Any]:
        """All but the integers, as JSON takes it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "quantized"}


def layer_report(
    name: str,
    method: str,
    weight: Tensor,
    quantized: Quantized,
    *,
    damp: float | None = None,
    tokens: int | None = None,
    loss: float | None = None,
    note: str = "",
) -> LayerReport:
    """The report on a layer whose float `weight` [out, in] became `quantized`."""
    restored = quantized.dequantize().to(weight.device)
    ratio = float(weight_sqnr_db(weight.float(), restored))
    return LayerReport(name, method, quantized, ratio, damp, tokens, loss, note)
