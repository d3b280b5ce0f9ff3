"""The "quantization_config" of compressed-tensors, as far as labkit knows it: one group of layers.

    {"quant_method": "compressed-tensors", "format": "pack-quantized",
     "quantization_status": "compressed", "ignore": ["lm_head"],
     "config_groups": {"group_0": {"targets": ["Linear"],
         "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
                     "group_size": 128, "dynamic": false},
         "input_activations": null}}}

Source: compressed-tensors 0.19.0, quantization/quant_config.py, quant_scheme.py, quant_args.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.core.errors import FormatError
from labkit.core.float8_tensor import Float8Tensor
from labkit.formats import expecting
from labkit.formats.checkpoint import Checkpoint

PACK, INT, FLOAT = "pack-quantized", "int-quantized", "float-quantized"

# What each format may hold: widths, and who shares a scale.
BITS = {PACK: (4, 8), INT: (8,), FLOAT: (8,)}
STRATEGIES = {PACK: ("channel", "group"), INT: ("channel", "tensor"), FLOAT: ("channel", "tensor")}


@dataclass(frozen=True)
class Inputs:
    """How inputs are quantized; ``measured``: their scale is in the checkpoint."""

    granularity: Literal["token", "tensor"]
    measured: bool


@dataclass(frozen=True)
class Settings:
    """What one config group says of its layers."""

    format: str
    bits: int
    symmetric: bool
    granularity: Literal["tensor", "channel", "group"]
    group_size: int | None
    inputs: Inputs | None
    act_order: bool = False


def settings_of(checkpoint: Checkpoint) -> Settings:
    """The settings that describe all layers of a checkpoint.

    Raises:
        FormatError: there are none, because the layers differ or no format holds them.
    """
    inputs = _inputs_of(checkpoint)
    kinds = {type(checkpoint.layers[name]) for name in checkpoint.layers}
    if kinds == {Float8Tensor}:
        single = {checkpoint.layers[name].scale.numel() == 1 for name in checkpoint.layers}
        if len(single) > 1:
            raise FormatError("scales by tensor and by channel", where=FLOAT, remedy="Choose one.")
        granularity = "tensor" if single == {True} else "channel"
        return Settings(FLOAT, 8, True, granularity, None, inputs)
    fmt = INT if inputs else PACK
    scheme = expecting.uniform_scheme(checkpoint.layers, fmt)
    if scheme.bits not in BITS[fmt] or scheme.granularity not in STRATEGIES[fmt]:
        raise FormatError(
            str(scheme),
            where=fmt,
            remedy=f"It holds {' or '.join(map(str, BITS[fmt]))} bits, by "
            f"{' or '.join(STRATEGIES[fmt])}.",
        )
    act_order = any(checkpoint.layers[name].g_idx is not None for name in checkpoint.layers)
    return Settings(
        fmt,
        scheme.bits,
        scheme.symmetric,
        scheme.granularity,
        scheme.group_size,
        inputs,
        act_order,
    )


def _inputs_of(checkpoint: Checkpoint) -> Inputs | None:
    if not checkpoint.inputs:
        return None
    if set(checkpoint.inputs) != set(checkpoint.layers):
        raise FormatError(
            "inputs are quantized in some of the layers alone",
            where="compressed-tensors",
            remedy="Quantize the inputs of every quantized layer, or of none.",
        )
    kinds = {(i.kind, i.granularity, i.scale is not None) for i in checkpoint.inputs.values()}
    floats = {isinstance(checkpoint.layers[name], Float8Tensor) for name in checkpoint.layers}
    if len(kinds) > 1 or {kind == "float" for kind, _, _ in kinds} != floats:
        raise FormatError(
            "inputs are quantized in several ways, or otherwise than weights",
            where="compressed-tensors",
            remedy="INT8 with INT8, FP8 with FP8, all layers alike.",
        )
    _, granularity, measured = kinds.pop()
    return Inputs(granularity, measured)


def to_json(settings: Settings, ignore: list[str]) -> dict[str, object]:
    """What goes into config.json; ``ignore`` names the linear layers that are not quantized."""
    kind = "float" if settings.format == FLOAT else "int"
    weights: dict[str, object] = {
        "num_bits": settings.bits,
        "type": kind,
        "symmetric": settings.symmetric,
        "strategy": settings.granularity,
        "group_size": settings.group_size,
        "dynamic": False,
        "actorder": "group" if settings.act_order else None,
    }
    inputs: dict[str, object] | None = None
    if settings.inputs:
        inputs = {
            "num_bits": 8,
            "type": kind,
            "symmetric": True,
            "strategy": settings.inputs.granularity,
            "group_size": None,
            "dynamic": not settings.inputs.measured,
        }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": settings.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def from_json(quantization: Mapping[str, object], path: Path) -> Settings:
    """Read what config.json says.

    Raises:
        FormatError: it is damaged, or says something that labkit does not know.
    """
    expecting.only(quantization, "quant_method", path, ["compressed-tensors"])
    expecting.only(quantization, "quantization_status", path, ["compressed", "frozen"])
    expecting.only(quantization, "kv_cache_scheme", path, [None])
    expecting.only(quantization, "sparsity_config", path, [None, {}])
    expecting.only(quantization, "transform_config", path, [None, {}])
    fmt = quantization.get("format")
    if fmt not in (PACK, INT, FLOAT):
        raise FormatError(
            f"format {fmt!r}", where=str(path), remedy=f"labkit reads {PACK}, {INT} and {FLOAT}."
        )
    group = _the_group(quantization, path)
    weights = _object(group, "weights", path)
    expecting.only(group, "output_activations", path, [None])
    expecting.only(weights, "type", path, ["float" if fmt == FLOAT else "int"])
    expecting.only(weights, "dynamic", path, [False])
    expecting.only(weights, "num_bits", path, BITS[fmt])
    expecting.only(weights, "strategy", path, STRATEGIES[fmt])
    strategy = weights.get("strategy")
    if strategy is None:
        raise FormatError("weights have no strategy", where=str(path))
    symmetric = expecting.flag(weights, "symmetric", path, default=True)
    if fmt == FLOAT and not symmetric:
        raise FormatError("asymmetric FP8", where=str(path))
    size = expecting.integer(weights, "group_size", path) if strategy == "group" else None
    bits = expecting.integer(weights, "num_bits", path)
    return Settings(fmt, bits, symmetric, strategy, size, _read_inputs(group, fmt, path))


def _the_group(quantization: Mapping[str, object], path: Path) -> dict[str, object]:
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise FormatError(
            f"{len(groups) if isinstance(groups, dict) else 'no'} config_groups",
            where=str(path),
            remedy="labkit reads models whose quantized layers all share one scheme.",
        )
    return _object(groups, next(iter(groups)), path)


def _read_inputs(group: Mapping[str, object], fmt: str, path: Path) -> Inputs | None:
    if group.get("input_activations") is None:
        return None
    inputs = _object(group, "input_activations", path)
    expecting.only(inputs, "num_bits", path, [8])
    expecting.only(inputs, "type", path, ["float" if fmt == FLOAT else "int"])
    expecting.only(inputs, "symmetric", path, [True])
    expecting.only(inputs, "strategy", path, ["token", "tensor"])
    if fmt == PACK:
        raise FormatError(f"{PACK} with quantized inputs", where=str(path))
    granularity = inputs.get("strategy")
    measured = not expecting.flag(inputs, "dynamic", path, default=False)
    if granularity not in ("token", "tensor") or (measured and granularity == "token"):
        raise FormatError(f"inputs by {granularity!r}, dynamic: {not measured}", where=str(path))
    return Inputs(granularity, measured)


def _object(holder: Mapping[str, object], key: str, path: Path) -> dict[str, object]:
    found = holder.get(key)
    if not isinstance(found, dict):
        raise FormatError(f"{key} is no object", where=str(path / "config.json"))
    return found
