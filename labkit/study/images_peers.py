"""The same net in other people's quantizers: PyTorch's x86 backend, and ONNX Runtime's own."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from labkit.evaluate.onnx_session import OnnxSession
from labkit.training.onnx_export import INPUT

Net = Callable[[Tensor], Tensor]


@contextmanager
def _backend(name: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        with warnings.catch_warnings():
            # torch.ao.quantization says that it will leave torch for torchao.
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


def torch_int8(net: nn.Module, pixels: Tensor, backend: str = "x86", own: bool = True) -> Net:
    """PyTorch's static INT8 (torch.ao.quantization, FX), calibrated with these images.

    Args:
        net: in floating point; batch norms are folded by PyTorch.
        own: PyTorch's own choice for the backend; False for 8-bit min-max ranges and weights by
            channel, as ours ("x86" itself keeps activations to 7 bits).
    """
    from torch.ao import quantization as ao
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with _backend(backend), torch.no_grad():
        config = ao.get_default_qconfig(backend)
        if not own:
            inputs = ao.MinMaxObserver.with_args(dtype=torch.quint8)
            config = ao.QConfig(inputs, ao.default_per_channel_weight_observer)
        mapping = ao.QConfigMapping().set_global(config)
        watched = prepare_fx(copy.deepcopy(net).eval(), mapping, (pixels[:1],))
        watched(pixels)
        quantized = convert_fx(watched)

    def run(x: Tensor) -> Tensor:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = backend
        try:
            return quantized(x)
        finally:
            torch.backends.quantized.engine = before

    return run


class _Reader:
    """What ONNX Runtime's calibration asks for: `get_next` until it gives None.

    One image at a time: it stacks what the batches give, so they must be of one size.
    """

    def __init__(self, pixels: Tensor) -> None:
        self._batches = iter(pixels.split(1))

    def get_next(self) -> dict[str, object] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def onnxruntime_int8(
    float_file: Path, to: Path, pixels: Tensor, method: str = "MinMax", per_channel: bool = True
) -> OnnxSession:
    """ONNX Runtime's quantize_static of a float file: "MinMax", "Entropy" or "Percentile"."""
    from onnxruntime import quantization as ort

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises to preprocess; the norms are folded already
    try:
        ort.quantize_static(
            str(float_file),
            str(to),
            _Reader(pixels),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=ort.CalibrationMethod[method],
        )
    finally:
        logger.setLevel(level)
    return OnnxSession(to)
