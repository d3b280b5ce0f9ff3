"""RoPE's settings out of a GGUF file, in transformers 4's words, which transformers 5 reads too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.core.errors import FormatError
from labkit.formats.gguf.rope import Rope, llama3_factors

if TYPE_CHECKING:
    from labkit.formats.gguf.settings_reading import Source

# Llama 3.1 and 3.2: the factor can be read off, these not; so far all models share them.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_config(source: Source, head_size: int) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and Gemma 3's `rope_local_base_freq`. Raises FormatError."""
    base = source.number("rope.freq_base", 10000.0)
    found: dict[str, Any] = {"rope_theta": base}
    scaling = _scaling(source, base, head_size)
    if scaling is not None:
        found["rope_scaling"] = scaling
    if source.architecture == "gemma3":
        found["rope_local_base_freq"] = source.number("rope.freq_base_swa", 10000.0)
    return found


def _scaling(source: Source, base: float, head_size: int) -> dict[str, Any] | None:
    if "rope_freqs.weight" in source.shapes:
        return _llama3(source, base, head_size)
    if "rope_factors_long.weight" in source.shapes:
        return {
            "type": "longrope",  # transformers 4 takes three fields and no more
            **{
                f"{which}_factor": _floats(source, f"rope_factors_{which}.weight")
                for which in ("long", "short")
            },
        }
    kind = source.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise FormatError(
            f"RoPE scaling {str(kind)[:40]!r}",
            where=source.where,
            remedy="labkit reads linear, yarn, llama3 and longrope.",
        )
    factor = source.number("rope.scaling.factor", 1.0)
    found = {"rope_type": kind, "type": kind, "factor": factor}
    if kind == "yarn":
        found["original_max_position_embeddings"] = source.count(
            "rope.scaling.original_context_length"
        )
    return found


def _llama3(source: Source, base: float, head_size: int) -> dict[str, Any]:
    """The settings that give these factors; only the largest factor can be read off them."""
    factors = np.array(_floats(source, "rope_freqs.weight"), np.float32)
    settings = {"rope_type": "llama3", "factor": float(factors.max(initial=0.0)), **_LLAMA3}
    rope = Rope(base, None, "llama3", settings)
    fits = len(factors) == head_size // 2 and np.isfinite(factors).all() and factors.min() > 0
    if not fits or not np.allclose(llama3_factors(rope, head_size), factors, rtol=1e-4):
        raise FormatError(
            "rope_freqs.weight holds no factors of Llama 3.1's rule",
            where=source.where,
            remedy="config.json has no words for other factors.",
        )
    return settings


def _floats(source: Source, name: str) -> list[float]:
    source.shape(name)
    return [float(str(value)) for value in source.read(name).astype(np.float32).reshape(-1)]
