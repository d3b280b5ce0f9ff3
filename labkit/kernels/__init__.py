"""Kernels that compute with packed weights: one signature, three implementations.

    reference   the formula, in float64 or exact integers: the truth
    cpu         Numba, sixteen lanes at a time, rows shared out over threads
    gpu         Triton; interpreted on a CPU where TRITON_INTERPRET=1

The device of the weight chooses; ``implementation=`` overrides. Numba is imported when a compiled
kernel first runs.
"""

from labkit.kernels.attention import decode_attention
from labkit.kernels.codebook import codebook_linear
from labkit.kernels.codebook_panels import CodebookPanels
from labkit.kernels.fp8 import fp8_linear
from labkit.kernels.gguf import gguf_linear
from labkit.kernels.gguf_panels import GgufPanels
from labkit.kernels.int4 import int4_linear
from labkit.kernels.int4_panels import Int4Panels
from labkit.kernels.int4_weight import Int4Weight
from labkit.kernels.int8 import int8_linear
from labkit.kernels.int8_weight import Int8Weight
from labkit.kernels.panels import panel_linear
from labkit.kernels.tokens import quantize_tokens

__all__ = [
    "CodebookPanels",
    "GgufPanels",
    "Int4Panels",
    "Int4Weight",
    "Int8Weight",
    "codebook_linear",
    "decode_attention",
    "fp8_linear",
    "gguf_linear",
    "int4_linear",
    "int8_linear",
    "panel_linear",
    "quantize_tokens",
]
