"""Write a convolution net as ONNX: in floating point, or with our integers between Q and DQ nodes.

In the QDQ form a tensor that is held as integers passes QuantizeLinear and DequantizeLinear with
*our* scale and zero-point; weights are int8 and biases int32 in the file. An engine fuses
DQ, Conv, Q into one integer convolution; one that cannot still computes the right numbers.

    weights     int8 codes, a scale per output channel or one for all
    bias        int32 codes with scale s_x · s_w: `labkit.training.static.with_integer_biases`
    inputs      uint8 codes, one scale and zero-point

The exporter is torch's TorchScript one; it writes fake-quantized activations as Q and DQ itself.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.core.errors import FormatError, ModelError
from labkit.core.scheme import QuantScheme
from labkit.training.batch_norm import QatConvBn2d
from labkit.training.layers import QatConv2d, QatLinear, Rounder, exported_weight
from labkit.training.static import (
    bias_step,
    stored_places,
    with_integer_biases,
    without_rounding,
)

if TYPE_CHECKING:
    import onnx

OPSET = 17
INPUT, OUTPUT = "pixels", "logits"
_LAYERS = (QatConvBn2d, QatConv2d, QatLinear)


def export_float(prepared: nn.Module, shape: tuple[int, ...], path: Path | str) -> None:
    """Write the float net, batch norms folded, for batches of any size.

    Args:
        prepared: what `labkit.training.static.prepare_static` returned.
        shape: channels, height and width of an image.
    """
    _export(without_rounding(prepared), shape, Path(path))


def export_integers(prepared: nn.Module, shape: tuple[int, ...], path: Path | str) -> None:
    """Write the quantized net: int8 weights, int32 biases, Q and DQ around all that is rounded.

    Raises:
        CalibrationError: a range that is not known: calibrate or train first.
        FormatError: inputs in a scheme other than 8 bits asymmetric.
        ModelError: nothing in it rounds.
    """
    import onnx

    layers = {name: m for name, m in prepared.named_modules() if isinstance(m, _LAYERS)}
    if not layers:
        raise ModelError(
            "no layer of it rounds",
            where=type(prepared).__name__,
            remedy="Export what labkit.training.static.prepare_static returned.",
        )
    prepared = with_integer_biases(prepared)
    plain = without_rounding(prepared)
    for name in layers:
        layer = prepared.get_submodule(name)
        rounding = _Rounding(layer.input_quant, name)
        _replace(plain, name, nn.Sequential(rounding, plain.get_submodule(name)))
    for name, quant in stored_places(prepared).items():
        _replace(plain, name, _Rounding(quant, name))
    _export(plain, shape, Path(path))
    file = onnx.load(str(path))
    for name in layers:
        _store_integers(file, f"{name}.1", prepared.get_submodule(name))
    onnx.checker.check_model(file)
    onnx.save(file, str(path))


class _Rounding(nn.Module):
    """Round by constants; the exporter writes it as a Q and a DQ node."""

    def __init__(self, quant: Rounder | None, name: str) -> None:
        super().__init__()
        if quant is None:
            raise FormatError("inputs that are not rounded", where=f"layer {name}")
        _require_bytes(quant.scheme, name)
        scale, zero_point = quant.qparams()
        self.scale, self.zero_point = float(scale), int(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 255)


def _require_bytes(scheme: QuantScheme, name: str) -> None:
    if scheme.bits != 8 or scheme.symmetric:
        raise FormatError(
            f"inputs in {scheme}",
            where=f"layer {name}",
            remedy="ONNX Runtime computes with uint8: QuantScheme(8, False, 'tensor').",
        )


def _export(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    with warnings.catch_warnings():
        # It says that another exporter is the default by now; that one knows no fake_quantize.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            copy.deepcopy(model).eval(),
            (torch.zeros(1, *shape),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )


def _store_integers(file: onnx.ModelProto, name: str, layer: QatConv2d | QatLinear) -> None:
    weight = exported_weight(layer)
    scale = weight.scale.float().flatten()
    codes = {f"{name}.weight": (weight.codes.numpy(), scale.numpy())}
    if layer.bias is not None:
        step = bias_step(layer)
        bias = (layer.bias.detach().double() / step).round()
        steps = step.float().expand(len(bias)).contiguous()
        codes[f"{name}.bias"] = (bias.to(torch.int32).numpy(), steps.numpy())
    _replace_initializers(file, codes)


def _replace_initializers(file: onnx.ModelProto, codes: Mapping[str, Any]) -> None:
    """Put codes and a DequantizeLinear node where floats were; whoever read them reads its output.

    Raises:
        ModelError: the exporter gave the tensor another name.
    """
    from onnx import helper, numpy_helper

    graph = file.graph
    for tensor_name, (values, scale) in codes.items():
        old = next((t for t in graph.initializer if t.name == tensor_name), None)
        if old is None:
            raise ModelError(f"no tensor {tensor_name!r} in the exported file", where="ONNX")
        graph.initializer.remove(old)
        one = scale.size == 1
        parts = {
            "codes": values,
            "scale": scale.reshape(()) if one else scale,
            "zero_point": np.zeros(() if one else scale.shape, values.dtype),
        }
        names = [f"{tensor_name}.{part}" for part in parts]
        for part_name, part in zip(names, parts.values(), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), part_name))
        axis = {} if one else {"axis": 0}
        node = helper.make_node(
            "DequantizeLinear", names, [tensor_name], f"{tensor_name}/DequantizeLinear", **axis
        )
        graph.node.insert(0, node)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
