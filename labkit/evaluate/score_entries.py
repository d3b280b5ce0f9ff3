"""The rows of the score table: which methods, on which grids."""

from __future__ import annotations

from functools import partial

from labkit.core.scheme import QuantScheme
from labkit.evaluate.score import Entry
from labkit.formats.gguf.mix import FILE_TYPES
from labkit.models.activations import with_llm_int8, with_quantized_activations
from labkit.models.methods.awq import Awq
from labkit.models.methods.gptq import Gptq
from labkit.models.methods.hqq import Hqq
from labkit.models.methods.llm_int8 import LlmInt8
from labkit.models.methods.nf4 import Nf4
from labkit.models.methods.protocol import BlockMethod
from labkit.models.methods.rtn import Rtn
from labkit.models.methods.smoothquant import SmoothQuant

GROUP_SIZE = 64
NO_INTEGERS = ("F32", "F16", "BF16", "MXFP4_MOE")
FP32 = Entry("FP32")


def rtn(bits: int, granularity: str, symmetric: bool = True, group_size: int = GROUP_SIZE) -> Entry:
    """Round-to-nearest."""
    group = group_size if granularity == "group" else None
    scheme = QuantScheme(bits, symmetric, granularity, group)  # type: ignore[arg-type]
    return Entry(f"RTN {scheme}", scheme)


def rtn_entries(everything: bool = False) -> list[Entry]:
    """FP32 first, then round-to-nearest at 8, 4, 3 and 2 bits per tensor, channel and group.

    `everything` adds asymmetric grids and more group sizes.
    """
    rows = [FP32]
    for bits in (8, 4, 3, 2):
        rows += [rtn(bits, granularity) for granularity in ("tensor", "channel", "group")]
        if everything:
            rows += [rtn(bits, granularity, False) for granularity in ("channel", "group")]
            rows += [rtn(bits, "group", group_size=size) for size in (32, 128)]
    return rows


def _grouped(bits: int) -> QuantScheme:
    return QuantScheme(bits, symmetric=False, granularity="group", group_size=GROUP_SIZE)


def _named(name: str, method: BlockMethod, grid: object = "") -> Entry:
    return Entry(f"{name} {grid}".strip(), method=method)


def _gptq(bits: int, **settings: bool) -> Entry:
    order = " act-order" if settings else ""
    return _named(f"GPTQ{order}", Gptq(_grouped(bits), **settings), _grouped(bits))


def _awq(bits: int) -> Entry:
    return _named("AWQ", Awq(_grouped(bits)), _grouped(bits))


def _hqq(bits: int) -> Entry:
    return _named("HQQ", Hqq(bits, GROUP_SIZE), f"int{bits} group {GROUP_SIZE}")


def _gguf(mix: str) -> Entry:
    return Entry(f"GGUF {mix}", gguf=mix)


def activation_entries() -> list[Entry]:
    """Weights and activations in 8 bits: naive, LLM.int8() and SmoothQuant."""
    per_token = partial(with_quantized_activations, activations="token")
    return [
        Entry("RTN W8A8 token", QuantScheme(8), run=per_token),
        Entry("LLM.int8()", method=LlmInt8(), run=with_llm_int8),
        Entry("SmoothQuant W8A8 token", method=SmoothQuant(), run=per_token),
    ]


def entries(everything: bool = False) -> list[Entry]:
    """FP32 first, then each method where it tells most: within a minute on two cores.

    `everything`: all methods at all their widths, and all of round-to-nearest.
    """
    int8, llm_int8, smooth = rtn(8, "channel"), *activation_entries()[1:]
    nf4 = _named("NF4", Nf4(), "block 64 double")
    if not everything:
        four = [rtn(4, "tensor"), rtn(4, "group", False), nf4, _hqq(4), _awq(4), _gptq(4)]
        four.append(_gguf("Q4_K_M"))
        three = [rtn(3, "group", False), _gptq(3)]
        two = [rtn(2, "group", False), _gguf("Q2_K")]
        return [FP32, int8, llm_int8, smooth, *four, *three, *two]
    rows = [*rtn_entries(everything=True), *activation_entries()]
    rows += [nf4, _named("NF4", Nf4(double_quantization=False), "block 64")]
    rows.append(_named("FP4", Nf4(quant_type="fp4"), "block 64 double"))
    for bits in (4, 3, 2):
        rows += [_hqq(bits), _awq(bits), _gptq(bits), _gptq(bits, act_order=True)]
    for grid in (_grouped(4), _grouped(3)):
        rows.append(_named("RTN clip", Rtn(grid, clip="mse"), grid))
    rows.append(_gptq(8))
    # What llama.cpp's files are made of; Q2_K to Q8_0.
    return [*rows, *(_gguf(mix) for mix in FILE_TYPES if mix not in NO_INTEGERS)]
