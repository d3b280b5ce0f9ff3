"""Size and latency of a convolution net, in floating point and in INT8, in three engines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.evaluate.interleaved import interleaved_ms
from labkit.evaluate.onnx_session import OnnxSession
from labkit.models.resnet import ResNet
from labkit.study.images_peers import torch_int8
from labkit.training.convert import convert
from labkit.training.onnx_export import export_float, export_integers
from labkit.training.static import calibrate, prepare_static, without_rounding

BATCHES = (1, 64)
LARGER = (32, 64, 128)


def larger_net() -> tuple[nn.Module, Tensor]:
    """An untrained net for 32 x 32 colour images, and noise to calibrate it: for times alone."""
    net = ResNet(3, 10, LARGER)
    pixels = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.train()(pixels)  # gives the batch norms statistics
    return net.eval(), pixels


def latencies(name: str, net: nn.Module, pixels: Tensor, rounds: int) -> list[dict[str, Any]]:
    """One row for each engine and batch size; medians of interleaved rounds, in milliseconds.

    Args:
        pixels: images [n, c, h, w] to calibrate with and to run on, at least 64.
    """
    threads = torch.get_num_threads()
    prepared = prepare_static(net)
    calibrate(prepared, [pixels])
    shape = tuple(pixels.shape[1:])
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        float_file, int_file = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        export_float(prepared, shape, float_file)
        export_integers(prepared, shape, int_file)
        engines = {
            "PyTorch FP32": without_rounding(prepared),
            "PyTorch x86 INT8": torch_int8(net, pixels),
            "ONNX Runtime FP32": OnnxSession(float_file, threads),
            "ONNX Runtime INT8, our scales": OnnxSession(int_file, threads),
        }
        for batch in BATCHES:
            calls = {key: _call(engine, pixels[:batch]) for key, engine in engines.items()}
            for engine, value in interleaved_ms(calls, rounds).items():
                rows.append({"net": name, "engine": engine, "batch": batch, "ms": value})
    return rows


def _call(engine: Any, x: Tensor):
    return lambda: engine(x)


def sizes(prepared: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Bytes of the numbers alone (weights, scales, 32-bit biases) and of the ONNX files."""
    floats = sum(4 * parameter.numel() for parameter in without_rounding(prepared).parameters())
    converted = convert(prepared)
    biases = sum(4 * converted.model.get_submodule(n).bias.numel() for n in converted.layers)
    with tempfile.TemporaryDirectory() as folder:
        float_file, int_file = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        export_float(prepared, shape, float_file)
        export_integers(prepared, shape, int_file)
        return {
            "float32": floats,
            "integers": sum(layer.nbytes for layer in converted.layers.values()) + biases,
            "float32_onnx": float_file.stat().st_size,
            "integers_onnx": int_file.stat().st_size,
        }
