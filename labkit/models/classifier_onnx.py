"""A text classifier for ONNX Runtime: exported, rounded, run.

Two ways to INT8 of ONNX Runtime's own quantizer:

    weights    int8 with a scale for each output channel in MatMul alone, inputs uint8 on the spot
               ("dynamic"). Everything else stays float32.
    whole      every operator that has an int8 form, one scale from calibration for each tensor
               ("static"): also what a single scale does not fit, such as the sums of the residual
               stream with their loud channels, and the -3.4e38 that masks padding.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError, ModelError
from labkit.models.text_classifier import TextBatch, TextClassifier

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 18
_INPUTS = ("ids", "mask")


class _Flat(nn.Module):
    """The classifier with tensors for arguments, as an exporter wants them."""

    def __init__(self, model: TextClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(TextBatch(ids, mask))


def export_onnx(model: TextClassifier, path: Path) -> Path:
    """Write the model (float32, evaluation mode) with free numbers of rows and tokens.

    Inputs "ids" and "mask", int64 [rows, length]; output "logits", float32 [rows, classes].

    Raises:
        ModelError: a model in training mode: dropout would be part of the file.
    """
    if model.training:
        raise ModelError("in training mode", type(model).__name__, "Call model.eval() first.")
    ids = torch.tensor([[1, 2, 3, 4, 0], [4, 3, 2, 1, 5]])  # any: what is traced is the shape
    axes = {name: {0: "rows", 1: "length"} for name in _INPUTS} | {"logits": {0: "rows"}}
    device = model.head.bias.device
    with _quiet():
        torch.onnx.export(
            _Flat(model).eval(),
            (ids.to(device), (ids != 0).long().to(device)),
            str(path),
            input_names=list(_INPUTS),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    return path


def quantize_weights(source: Path, target: Path) -> Path:
    """INT8 in MatMul alone: weights by output channel, inputs by tensor on the spot."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    return target


def quantize_whole(source: Path, target: Path, calibration: Sequence[TextBatch]) -> Path:
    """INT8 in all operators that ONNX Runtime can round, ranges from `calibration` (min-max).

    Raises:
        CalibrationError: no calibration texts.
    """
    if not calibration:
        raise CalibrationError("no calibration texts", "quantize_whole", "Give at least one batch.")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _quiet():
        quantize_static(
            source,
            target,
            _Reader(calibration),
            # With pairs of Q and DQ instead, ONNX Runtime 1.31 fails to load some of these graphs.
            quant_format=QuantFormat.QOperator,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
    return target


def session(path: Path, threads: int = 1) -> InferenceSession:
    """ONNX Runtime on the CPU with all its graph optimisations.

    Raises:
        ModelError: no such file, or one that ONNX Runtime does not take.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Without VNNI, uint8 times int8 would stop at 16 bits: ask for sums that do not.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but this one
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise ModelError(f"ONNX Runtime: {error}", path.name, "Export the model again.") from error


def run_onnx(running: InferenceSession, batches: Sequence[TextBatch]) -> Tensor:
    """Logits float32 [texts, classes] in the order of the batches."""
    parts = [running.run(["logits"], feed(batch))[0] for batch in batches]
    return torch.from_numpy(np.concatenate(parts))


def feed(batch: TextBatch) -> dict[str, np.ndarray]:
    """A batch as the session takes it."""
    return {"ids": batch.ids.numpy(), "mask": batch.mask.numpy()}


class _Reader:
    """What the static quantizer asks for calibration data."""

    def __init__(self, batches: Sequence[TextBatch]) -> None:
        self.rows: Iterator[dict[str, np.ndarray]] = map(feed, batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice of exporter and quantizer on steps that are left out on purpose.

    That the static quantizer divides by zero on a mask of -3.4e38 shows in what its model answers.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
