"""RoPE's settings: the two ways in which config.json says them, and what llama.cpp makes of them.

transformers 4 has `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`, which may have
one entry for each kind of attention layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from labkit.core.errors import ModelError
from labkit.formats.gguf.values import Value, f32, string, u32

# llama.cpp computes YaRN with these, whatever config.json says.
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}


@dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys.

    Args:
        base: of the frequencies, theta.
        local_base: the same in layers with a sliding window; None if it is the same.
        kind: "default", "linear", "yarn", "llama3" or "longrope".
        settings: the rest, with config.json's words.
    """

    base: float
    local_base: float | None = None
    kind: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)


def rope_of(config: Mapping[str, Any]) -> Rope:
    """What config.json says. Raises ModelError for a kind of scaling that llama.cpp lacks."""
    said = dict(config.get("rope_parameters") or {})
    local = config.get("rope_local_base_freq")
    if "full_attention" in said or "sliding_attention" in said:
        local = (said.get("sliding_attention") or {}).get("rope_theta", local)
        said = dict(said.get("full_attention") or {})
    elif not said:
        said = dict(config.get("rope_scaling") or {})
    base = said.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = str(said.pop("rope_type", None) or said.pop("type", None) or "default")
    said.pop("type", None)
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in ("default", "linear", "yarn", "llama3", "longrope"):
        raise ModelError(
            f"llama.cpp has no RoPE scaling {kind!r}",
            where="config.json",
            remedy="It has linear, yarn, llama3 and longrope.",
        )
    if kind == "yarn":
        _require_plain_yarn(said)
    if kind == "longrope":  # transformers 4 keeps it beside the scaling
        key = "original_max_position_embeddings"
        said.setdefault(key, config.get(key) or config.get("max_position_embeddings"))
    settings = {key: value for key, value in said.items() if value is not None}
    return Rope(float(base), None if local is None else float(local), kind, settings)


def rope_values(rope: Rope, architecture: str, context: int) -> dict[str, Value]:
    """The metadata that tell llama.cpp. `context`: the model's positions."""
    found = {"rope.freq_base": f32(rope.base)}
    if rope.local_base is not None and rope.local_base != 10000.0:  # llama.cpp's own
        found["rope.freq_base_swa"] = f32(rope.local_base)
    if rope.kind in ("linear", "yarn"):
        found["rope.scaling.type"] = string(rope.kind)
        found["rope.scaling.factor"] = f32(float(rope.settings["factor"]))
    if rope.kind == "yarn":
        original = rope.settings.get("original_max_position_embeddings", context)
        found["rope.scaling.original_context_length"] = u32(int(original))
    if rope.kind == "longrope":
        original = int(rope.settings["original_max_position_embeddings"])
        found["rope.scaling.original_context_length"] = u32(original)
        found["rope.scaling.attn_factor"] = f32(_long_attention(rope, context / original, original))
    return {f"{architecture}.{key}": value for key, value in found.items()}


def rope_tensors(rope: Rope, head_size: int) -> dict[str, np.ndarray]:
    """Tensors that divide the frequencies, float32 [half of the turned rows]; often none."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope, head_size)}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{which}.weight": np.asarray(rope.settings[f"{which}_factor"], np.float32)
            for which in ("long", "short")
        }
    return {}


def llama3_factors(rope: Rope, head_size: int) -> np.ndarray:
    """By how much Llama 3.1 slows each frequency, float32 [head_size / 2].

    Waves that fit into the original context often enough stay as they are, those that never do are
    slowed by `factor`, and between the two it is blended.
    """
    factor = float(rope.settings["factor"])
    low, high = float(rope.settings["low_freq_factor"]), float(rope.settings["high_freq_factor"])
    original = float(rope.settings["original_max_position_embeddings"])
    frequency = rope.base ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    turns = original * frequency / (2 * math.pi)  # of this wave within the original context
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / factor + blend)).astype(np.float32)


def _long_attention(rope: Rope, scale: float, original: int) -> float:
    """Long contexts spread attention; LongRoPE sharpens it by this factor."""
    if rope.settings.get("attention_factor"):
        return float(rope.settings["attention_factor"])
    scale = float(rope.settings.get("factor") or scale)
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _require_plain_yarn(said: Mapping[str, Any]) -> None:
    usual = {**_YARN_DEFAULTS, "attention_factor": 0.1 * math.log(said["factor"]) + 1.0}
    for key, value in usual.items():
        own = said.get(key)
        if own is not None and not math.isclose(float(own), value, rel_tol=1e-6):
            raise ModelError(
                f"YaRN with {key} {own}; llama.cpp computes it with {value:g} alone",
                where="config.json",
            )
