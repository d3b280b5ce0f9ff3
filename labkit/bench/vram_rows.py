"""What a 4-bit model takes of a card's memory: built there layer by layer, then it generates.

The weights are random codes, packed as `labkit.models.packed` packs a file's; embedding and head
are bfloat16. Nothing of the model is ever there in 16 bits as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from labkit.bench import devices
from labkit.bench.memory_models import config_of, layers_of, others_of
from labkit.bench.memory_rows import MemoryRow, table
from labkit.bench.random_gguf import LlamaShape
from labkit.bench.rows import Effort
from labkit.core.model_shapes import MODEL_SHAPES
from labkit.formats.checkpoint import Checkpoint, Lazy
from labkit.kernels import Int4Weight
from labkit.models.packed_build import build
from labkit.nn.quant_linear import QuantLinear

__all__ = ["RATIO_MEANS", "rows", "table"]

RATIO_MEANS = "bytes of the weights for each byte in memory"
NAME, GROUP, PROMPT, NEW = "llama-2-7b", 128, 512, 64
QUICK = LlamaShape(1024, 4, 2816, 16, 16, 8192, 1024)


def rows(effort: Effort, device: str) -> Iterator[MemoryRow]:
    """Yield one row: bytes of the packed weights, of what they take, and of the peak.

    Of a card: "loaded" is what torch holds, "peak" the most that it ever took from the card, and
    "after tokens" what the card has given away in the end: to CUDA itself and to others, too.

    Raises SchemeError where there is no such device.
    """
    place, whole = devices.found(device), MODEL_SHAPES[NAME]
    shape = LlamaShape(
        *(whole.hidden, whole.layers, whole.ffn, whole.heads, whole.kv_heads, whole.vocab),
        context=PROMPT + NEW,
    )
    yield measure(QUICK if effort.quick else shape, place)


def measure(shape: LlamaShape, device: torch.device) -> MemoryRow:
    """Build a model of ``shape`` on the device, and let it generate."""
    gauge = devices.gauge(device)
    torch.manual_seed(0)
    model = build(_checkpoint(shape, device), torch.bfloat16, 16).to(device)
    weights = sum(m.weight_nbytes for m in model.modules() if isinstance(m, QuantLinear))
    tables = sum(parameter.nbytes for parameter in model.parameters())
    loaded = gauge.held()
    prompt = torch.randint(shape.vocabulary, (1, PROMPT), device=device)
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
    )
    return MemoryRow(
        f"int4 group {GROUP}, {PROMPT} + {NEW} tokens, {devices.name(device)}",
        "its packed weights",
        shape.parameters,
        weights + tables,
        loaded,
        gauge.peak(),
        gauge.taken(),
    )


def _checkpoint(shape: LlamaShape, device: torch.device) -> Checkpoint:
    """Every layer and tensor is drawn on the device when it is asked for."""
    layers, sizes = layers_of(shape), others_of(shape)

    def tensor(name: str) -> Tensor:
        if len(sizes[name]) == 1:
            return torch.ones(sizes[name], dtype=torch.bfloat16, device=device)
        return torch.randn(sizes[name], dtype=torch.bfloat16, device=device) * 0.02

    return Checkpoint(
        config_of(shape),
        Lazy(sizes, tensor),
        Lazy(layers, lambda name: _layer(*layers[name], device)),
    )


def _layer(rows: int, columns: int, device: torch.device) -> Int4Weight:
    """Random codes, and scales that keep what goes through about as large as it is."""
    codes = torch.randint(256, (rows, columns // 2), dtype=torch.uint8, device=device)
    size = (rows, columns // GROUP)
    scale = torch.full(size, 0.2 / columns**0.5, dtype=torch.float16, device=device)
    order = torch.arange(columns, dtype=torch.int32, device=device)
    return Int4Weight(codes, scale, None, order, 128, columns)
