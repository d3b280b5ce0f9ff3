"""A convolution net in INT8: which ranges, how many images, which scales? `labkit study images`

One small residual net, trained here on scikit-learn's digits. Each accuracy comes with one standard
error, each change against the float net with that of the difference on the same images.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.metrics import sqnr_db
from labkit.core.observers import OBSERVERS
from labkit.core.scheme import QuantScheme
from labkit.data.images import ImageData, load_images
from labkit.evaluate.images import Accuracy, accuracy, accuracy_of, logits_of
from labkit.evaluate.onnx_session import OnnxSession
from labkit.models.resnet import ResNet
from labkit.study.images_block import readme_block
from labkit.study.images_peers import onnxruntime_int8, torch_int8
from labkit.study.images_speed import larger_net, latencies, sizes
from labkit.training.convert import convert
from labkit.training.images import FLOAT, QAT, train_images
from labkit.training.layer_errors import layer_errors
from labkit.training.onnx_export import export_float, export_integers
from labkit.training.static import calibrate, prepare_static, with_integer_biases

__all__ = ["readme_block", "run"]

RANGES = ("minmax", "percentile", "kl")
COUNTS = (50, 200, 1000)
DROP = 0.01
"""What training has to repair: more than one right answer in a hundred."""


@dataclass(frozen=True)
class Setting:
    """Bits of weights and of everything that flows, and which weights share a scale."""

    weights: int
    inputs: int
    granularity: str

    def prepared(self, net: nn.Module) -> nn.Module:
        """The net with places to round."""
        weights = QuantScheme(self.weights, True, self.granularity)
        return prepare_static(net, weights, QuantScheme(self.inputs, False, "tensor"))

    def __str__(self) -> str:
        return f"W{self.weights}A{self.inputs} per {self.granularity}"


GRID = tuple(
    Setting(weights, inputs, granularity)
    for weights, inputs in ((8, 8), (4, 8), (8, 4))
    for granularity in ("channel", "tensor")
)
TRAINED = (*GRID, Setting(3, 8, "channel"), Setting(2, 8, "channel"))


def run(quick: bool = False, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """All tables; "quick" trains for a moment and takes one setting of each."""
    data = load_images()
    net = ResNet(data.shape[0], len(data.classes))
    steps = 40 if quick else FLOAT.steps
    train_images(net, data.train, replace(FLOAT, steps=steps))
    exact = accuracy(net, data.test)
    tell(f"float net: {exact.value:.2%} ± {exact.error:.2%}")
    grid = (GRID[:1], ("minmax",), COUNTS[:1]) if quick else (GRID, RANGES, COUNTS)
    return {
        "images": {"train": len(data.train), "test": len(data.test)},
        "net": {"parameters": sum(p.numel() for p in net.parameters()), "steps": steps},
        "float": _figures(exact),
        "ptq": _ptq(net, data, exact, *grid, tell),
        "qat": _qat(net, data, exact, TRAINED[-1:] if quick else TRAINED, quick, tell),
        "layers": _layers(net, data),
        "engines": _engines(net, data, exact, tell),
        "bytes": _bytes(net, data),
        "latency": _latency(net, data, quick, tell),
    }


def _figures(found: Accuracy, exact: Accuracy | None = None) -> dict[str, float]:
    figures = {"accuracy": found.value, "error": found.error}
    if exact is not None:
        figures["change"], figures["change_error"] = found.minus(exact)
    return figures


def _calibrated(setting: Setting, net: nn.Module, data: ImageData, name: str, count: int):
    prepared = setting.prepared(net)
    calibrate(prepared, [data.calibration.first(count).pixels()], OBSERVERS[name])
    return prepared


def _ptq(
    net: nn.Module,
    data: ImageData,
    exact: Accuracy,
    settings: tuple[Setting, ...],
    ranges: tuple[str, ...],
    counts: tuple[int, ...],
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    rows = []
    wanted = logits_of(net, data.test)
    for setting in settings:
        for name in ranges:
            for count in counts:
                logits = logits_of(_calibrated(setting, net, data, name, count), data.test)
                figures = _figures(accuracy_of(logits, data.test), exact)
                figures["logits_db"] = sqnr_db(wanted, logits)
                rows.append({**asdict(setting), "range": name, "images": count, **figures})
                tell(f"{setting}, {name}, {count} images: {figures['change']:+.2%}")
    return rows


def _qat(
    net: nn.Module,
    data: ImageData,
    exact: Accuracy,
    settings: tuple[Setting, ...],
    quick: bool,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train where calibration alone drops too much; and the float net as long, to compare with."""
    plan = replace(QAT, steps=4) if quick else QAT
    further = copy.deepcopy(net)
    train_images(further, data.train, plan)
    rows = [
        {
            "setting": "float, trained on",
            "steps": plan.steps,
            "after": _figures(accuracy(further, data.test), exact),
        }
    ]
    for setting in settings:
        prepared = _calibrated(setting, net, data, "minmax", COUNTS[-1])
        before = accuracy(prepared, data.test)
        row: dict[str, Any] = {"setting": str(setting), "before": _figures(before, exact)}
        if exact.value - before.value > DROP or quick:
            train_images(prepared, data.train, plan)
            integers = accuracy(convert(prepared).model, data.test)
            row |= {"steps": plan.steps, "after": _figures(integers, exact)}
        rows.append(row)
        tell(f"{setting}: {before.value:.2%} {row.get('after', '')}")
    return rows


def _layers(net: nn.Module, data: ImageData) -> dict[str, list[dict[str, Any]]]:
    pixels = data.test.pixels(slice(0, 256))
    return {
        granularity: [
            asdict(row)
            for row in layer_errors(
                _calibrated(Setting(8, 8, granularity), net, data, "minmax", 200), pixels
            )
        ]
        for granularity in ("channel", "tensor")
    }


def _engines(
    net: nn.Module, data: ImageData, exact: Accuracy, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Ours and theirs with the same 200 images: accuracy, and how near the float net's logits."""
    pixels = data.calibration.first(200).pixels()
    prepared = _calibrated(GRID[0], net, data, "minmax", 200)
    wanted = logits_of(net, data.test)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        float_file, int_file = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        export_float(prepared, data.shape, float_file)
        export_integers(prepared, data.shape, int_file)
        theirs = Path(folder, "theirs.onnx")
        integers = convert(prepared).model
        outputs: dict[str, Tensor] = {
            name: logits_of(engine, data.test)
            for name, engine in {
                "labkit, fake-quantized": prepared,
                "labkit, integers": integers,
                "labkit, integers, int32 biases": convert(with_integer_biases(prepared)).model,
                "ONNX Runtime FP32": OnnxSession(float_file),
                "ONNX Runtime INT8, our scales": OnnxSession(int_file),
                "ONNX Runtime INT8, quantize_static": onnxruntime_int8(float_file, theirs, pixels),
                "PyTorch x86, its default": torch_int8(net, pixels),
                "PyTorch onednn, its default": torch_int8(net, pixels, "onednn"),
                "PyTorch onednn, min-max": torch_int8(net, pixels, "onednn", own=False),
            }.items()
        }
    ours = outputs["labkit, integers"]
    rows = []
    for name, logits in outputs.items():
        rows.append(
            {
                "engine": name,
                **_figures(accuracy_of(logits, data.test), exact),
                "logits_db": sqnr_db(wanted, logits),
                "agrees_with_ours": float((logits.argmax(1) == ours.argmax(1)).double().mean()),
                "largest_difference": float((logits - ours).abs().max()),
            }
        )
        tell(f"{name}: {rows[-1]['change']:+.2%}, {rows[-1]['logits_db']:.1f} dB")
    return rows


def _bytes(net: nn.Module, data: ImageData) -> dict[str, dict[str, int]]:
    settings = (Setting(8, 8, "channel"), Setting(8, 8, "tensor"), Setting(4, 8, "channel"))
    return {str(s): sizes(_calibrated(s, net, data, "minmax", 50), data.shape) for s in settings}


def _latency(
    net: nn.Module, data: ImageData, quick: bool, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    rounds = 3 if quick else 60
    rows = latencies("digits, 8 x 8", net, data.calibration.first(200).pixels(), rounds)
    if not quick:
        rows += latencies("larger, 32 x 32", *larger_net(), rounds)
    for row in rows:
        tell(f"{row['net']}, {row['engine']}, batch {row['batch']}: {row['ms']:.3g} ms")
    return rows
