"""Adapters on disk, in the folder that Hugging Face's peft writes and reads.

    adapter_config.json         rank, alpha, the names of the layers
    adapter_model.safetensors   base_model.model.LAYER.lora_A.weight [rank, in], lora_B [out, rank]

The base is not in it: the same adapters go onto the 4-bit base that they were trained beside, or
onto the float model (which they fit a little worse, for they also learned to mend its rounding).
Source: peft 0.21, utils/save_and_load.py and tuners/lora/config.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.errors import FormatError, ModelError
from labkit.formats import expecting
from labkit.formats.reading import LazyTensors, open_tensors, read_json
from labkit.formats.writing import folder_aside, save_tensors, write_json
from labkit.training.qlora import ADAPTER, adapted_layers, base_shape, inject, require_bare

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B")
# What would change the layer's formula and is not read here; absent, empty and False are fine.
_UNREAD = (
    "use_dora use_qalora lora_bias rank_pattern alpha_pattern modules_to_save layer_replication "
    "trainable_token_indices target_parameters use_bdlora arrow_config kasa_config velora_config "
    "monteclora_config alora_invocation_tokens megatron_config"
).split()


def save_adapters(model: nn.Module, folder: Path | str, *, overwrite: bool = False) -> None:
    """Write the adapters of a model; the folder appears when it is whole.

    Args:
        overwrite: replace a folder that is there.

    Raises:
        ModelError: no adapters, or layers with different ranks or factors.
        FormatError: the folder is there and not empty.
        StorageError: the disk is full, or the place is closed.
    """
    layers = adapted_layers(model)
    kinds = {(layer.r[ADAPTER], layer.scaling[ADAPTER]) for layer in layers.values()}
    if len(kinds) != 1:
        raise ModelError(
            "no adapters" if not kinds else f"adapters of {len(kinds)} kinds",
            where=type(model).__name__,
            remedy="Call add_adapters first; all layers share one rank and one alpha.",
        )
    rank, scaling = kinds.pop()
    tensors = {
        f"{_PREFIX}{name}.{part}.weight": getattr(layer, part)[ADAPTER].weight
        for name, layer in layers.items()
        for part in _PARTS
    }
    config = _config(rank, scaling * rank, _dropout(layers), sorted(layers))
    with folder_aside(Path(folder), overwrite=overwrite) as aside:
        save_tensors(aside / TENSORS, tensors)
        write_json(aside / CONFIG, config)


def load_adapters(model: nn.Module, folder: Path | str) -> nn.Module:
    """Put the adapters of a folder onto a base, in place; they alone learn from now on.

    Args:
        model: as for `add_adapters`.
        folder: what `save_adapters` or peft's `save_pretrained` wrote (LoRA of linear layers).

    Raises:
        FormatError: damaged or hostile files, settings that change the formula (DoRA, other ranks
            layer by layer, biases), or a config that contradicts the tensors.
        ModelError: adapters of another model, peft is not installed, or the model has adapters.
    """
    require_bare(model)
    folder = Path(folder)
    settings = _settings(folder)
    tensors = open_tensors(folder / TENSORS)
    rank = settings["rank"]
    names = _layer_names(tensors, folder)
    modules = dict(model.named_modules())
    values: dict[str, dict[str, Tensor]] = {}
    for name in names:
        _require_fit(modules.get(name), name, tensors, rank, folder)
        values[name] = {part: tensors[f"{_PREFIX}{name}.{part}.weight"] for part in _PARTS}
        for part, value in values[name].items():
            expecting.finite(value, f"{name}.{part}", folder)
    # Nothing of the model has changed until here.
    inject(model, names, rank, settings["alpha"], settings["dropout"], seed=0)
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            for part in _PARTS:
                getattr(layer, part)[ADAPTER].weight.copy_(values[name][part])
    return model


def _config(rank: int, alpha: float, dropout: float, layers: list[str]) -> Mapping[str, Any]:
    """peft's own defaults around our four numbers, as JSON takes them."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, inference_mode=True)
    fields = config.to_dict() | {"target_modules": layers, "peft_type": "LORA"}
    return json.loads(json.dumps(fields))


def _dropout(layers: Mapping[str, nn.Module]) -> float:
    return float(getattr(next(iter(layers.values())).lora_dropout[ADAPTER], "p", 0.0))


def _settings(folder: Path) -> dict[str, Any]:
    """Rank, factor and dropout of a config that says nothing else."""
    path = folder / CONFIG
    fields = read_json(path)
    expecting.only(fields, "peft_type", folder, ["LORA"])
    expecting.only(fields, "bias", folder, ["none"])
    for key in _UNREAD:
        if fields.get(key):
            raise FormatError(
                f"{key} is {fields[key]!r:.60}",
                where=str(path),
                remedy="labkit reads plain LoRA of linear layers; merge these with peft itself.",
            )
    rank, alpha = fields.get("r"), fields.get("lora_alpha", 8)
    dropout = fields.get("lora_dropout", 0.0)
    if type(rank) is not int or not 0 < rank < 2**20:
        raise FormatError(f"r is {rank!r:.60}", where=str(path), remedy="Expected a count.")
    if not _number(alpha) or not _number(dropout) or not 0 <= dropout < 1:
        raise FormatError(
            f"lora_alpha is {alpha!r:.60}, lora_dropout {dropout!r:.60}",
            where=str(path),
            remedy="Expected finite numbers, dropout from 0 to below 1.",
        )
    # rsLoRA (Kalajdzievski 2023) divides by the root of the rank.
    steeper = expecting.flag(fields, "use_rslora", folder, False)
    alpha = float(alpha) * (math.sqrt(rank) if steeper else 1.0)
    return {"rank": rank, "alpha": alpha, "dropout": float(dropout)}


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _layer_names(tensors: LazyTensors, folder: Path) -> list[str]:
    """The layers that have an A and a B; every tensor must be one of these."""
    names = list(dict.fromkeys(key.removeprefix(_PREFIX).rsplit(".", 2)[0] for key in tensors))
    wanted = {f"{_PREFIX}{name}.{part}.weight" for name in names for part in _PARTS}
    if not names or wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))
        raise FormatError(
            f"no pairs of lora_A and lora_B, such as {odd[0]!r}" if odd else "no tensors",
            where=str(folder / TENSORS),
            remedy="Give a folder that save_adapters or peft's save_pretrained wrote.",
        )
    return names


def _require_fit(
    layer: nn.Module | None, name: str, tensors: LazyTensors, rank: int, folder: Path
) -> None:
    shape = None if layer is None else base_shape(layer)
    if shape is None:
        raise ModelError(
            f"no linear layer {name!r}",
            where=str(folder),
            remedy="These are adapters of another model: load them onto the one they belong to.",
        )
    found = {part: tensors.entry(f"{_PREFIX}{name}.{part}.weight") for part in _PARTS}
    shapes = {part: entry.shape for part, entry in found.items()}
    if shapes["lora_A"][:1] != (rank,) or shapes["lora_B"][1:] != (rank,):
        raise FormatError(
            f"{name!r} has adapters of shapes {shapes}, by {CONFIG} of rank {rank}",
            where=str(folder),
        )
    if (shapes["lora_B"][0], *shapes["lora_A"][1:]) != shape:
        raise ModelError(
            f"adapters for a layer {name!r} of another shape: {shapes}; here it is {shape}",
            where=str(folder),
            remedy="These are adapters of another model: load them onto the one they belong to.",
        )
    wrong = [part for part, entry in found.items() if entry.dtype not in expecting.FLOATS]
    if wrong:
        raise FormatError(f"{name}.{wrong[0]} is {found[wrong[0]].dtype}", where=str(folder))
