"""Which block type each tensor gets: "Q4_K_M" names a mix, and this is its rule.

A mix starts from one type and gives more bits where errors hurt most: to the output matrix, to the
values of attention, and to the down projections of some layers. What does not fit a type's blocks
falls back to another type, which llama.cpp does in silence and `Choice.reason` says aloud.

Source: llama.cpp of llama-cpp-python 0.3.36, src/llama-quant.cpp (llama_tensor_get_type and
tensor_type_fallback). Experts are left out: labkit converts dense models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labkit.core.errors import SchemeError
from labkit.quantize.gguf_types import BLOCK_TYPES


@dataclass(frozen=True)
class FileType:
    """What a file as a whole is called.

    Args:
        number: `general.file_type` in the file.
        type_name: the block type that it starts from.
    """

    number: int
    type_name: str


FILE_TYPES: dict[str, FileType] = {
    "F32": FileType(0, "F32"),
    "F16": FileType(1, "F16"),
    "BF16": FileType(32, "BF16"),
    "Q8_0": FileType(7, "Q8_0"),
    "Q6_K": FileType(18, "Q6_K"),
    "Q5_K_M": FileType(17, "Q5_K"),
    "Q5_K_S": FileType(16, "Q5_K"),
    "Q5_1": FileType(9, "Q5_1"),
    "Q5_0": FileType(8, "Q5_0"),
    "Q4_K_M": FileType(15, "Q4_K"),
    "Q4_K_S": FileType(14, "Q4_K"),
    "IQ4_NL": FileType(25, "IQ4_NL"),
    "IQ4_XS": FileType(30, "IQ4_XS"),
    "Q4_1": FileType(3, "Q4_1"),
    "Q4_0": FileType(2, "Q4_0"),
    "Q3_K_L": FileType(13, "Q3_K"),
    "Q3_K_M": FileType(12, "Q3_K"),
    "Q3_K_S": FileType(11, "Q3_K"),
    "Q2_K": FileType(10, "Q2_K"),
    "MXFP4_MOE": FileType(38, "MXFP4"),
}
_FLOATS = ("F32", "F16", "BF16")

# llama.cpp's tools take these short names, too.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# Where a row is no multiple of 256: the type with blocks of 32 that costs about as much.
_SMALLER_BLOCKS = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}


@dataclass(frozen=True)
class ModelFacts:
    """What the rule asks of a model.

    Args:
        architecture: GGUF's name of it.
        layers, heads, kv_heads: numbers of blocks, of query heads, of key and value heads.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int

    @property
    def grouping(self) -> int:
        """Query heads that share one value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """llama.cpp knows the 70B models by their 80 layers."""
        grouped = self.architecture == "llama" and self.heads != self.kv_heads
        return self.layers == 80 and (grouped or self.architecture == "qwen2")


@dataclass(frozen=True)
class Choice:
    """The type of one tensor; `reason` says why it is not the one that the mix asked for."""

    type_name: str
    reason: str = ""


@dataclass(frozen=True)
class _Place:
    """A tensor of a role: the how-maniest of how many, and in what model."""

    index: int
    count: int
    grouping: int
    importance: bool

    @property
    def first_eighth(self) -> bool:
        return self.index < self.count // 8

    @property
    def more_bits(self) -> bool:
        """The first and the last eighth of the layers, and every third between them."""
        last_eighth = self.index >= 7 * self.count // 8
        return self.first_eighth or last_eighth or (self.index - self.count // 8) % 3 == 2


# role -> mix -> the type that it gets instead of the mix's own; None for no change.
_Rule = Callable[[_Place], str | None]
_RULES: dict[str, dict[str, _Rule]] = {
    "value": {
        "Q2_K": lambda at: "Q4_K" if at.grouping >= 4 else "Q3_K",
        "Q3_K_M": lambda at: "Q5_K" if at.index < 2 else "Q4_K",
        "Q3_K_L": lambda at: "Q5_K",
        "Q4_K_S": lambda at: "Q5_K" if at.index < 4 else None,
        "Q4_K_M": lambda at: "Q6_K" if at.more_bits else None,
        "Q5_K_M": lambda at: "Q6_K" if at.more_bits else None,
        "IQ4_NL": lambda at: "Q5_K" if at.grouping >= 4 else None,
        "IQ4_XS": lambda at: "Q5_K" if at.grouping >= 4 else None,
    },
    "down": {
        "Q2_K": lambda at: "Q3_K",
        "Q3_K_M": lambda at: "Q5_K" if at.index < at.count // 16 else "Q4_K",
        "Q3_K_L": lambda at: "Q5_K",
        "Q4_K_S": lambda at: "Q5_K" if at.first_eighth else None,
        "Q4_K_M": lambda at: "Q6_K" if at.more_bits else None,
        "Q5_K_M": lambda at: "Q6_K" if at.more_bits else None,
        "IQ4_NL": lambda at: "Q5_K" if at.first_eighth and not at.importance else None,
        "IQ4_XS": lambda at: "Q5_K" if at.first_eighth and not at.importance else None,
        "Q4_0": lambda at: "Q4_1" if at.first_eighth and at.importance else None,
        "Q5_0": lambda at: "Q5_1" if at.first_eighth and at.importance else None,
    },
    "attention output": {
        "Q2_K": lambda at: "Q3_K",
        "Q3_K_M": lambda at: "Q4_K",
        "Q3_K_L": lambda at: "Q5_K",
    },
}


def file_type(name: str) -> str:
    """The full name of a mix ("q4_k" -> "Q4_K_M"). Raises SchemeError for an unknown one."""
    wanted = name.upper()
    wanted = ALIASES.get(wanted, wanted)
    if wanted not in FILE_TYPES:
        raise SchemeError(
            f"no GGUF file type {name!r}", remedy=f"Choose from {', '.join(FILE_TYPES)}."
        )
    return wanted


def choose_types(
    shapes: Mapping[str, tuple[int, ...]],
    mix: str,
    model: ModelFacts,
    *,
    importance: bool = False,
    pure: bool = False,
) -> dict[str, Choice]:
    """The type of each tensor.

    Args:
        shapes: GGUF's names and shapes (outermost first: [rows, columns]) of all tensors.
        mix: a key of FILE_TYPES.
        importance: an importance matrix is at hand; some mixes then save bits.
        pure: the mix's own type for every matrix, and no more than the fall-backs.

    Raises SchemeError for an unknown mix.
    """
    mix = file_type(mix)
    base = FILE_TYPES[mix].type_name
    values = sum(_role(name, tied=False) == "value" for name in shapes)
    tied = "output.weight" not in shapes
    seen = {"value": 0, "down": 0}
    chosen: dict[str, Choice] = {}
    # llama.cpp counts the tensors of a role in this order, and so the layers.
    for name in sorted(shapes, key=lambda name: (_layer(name), name)):
        if not _is_matrix(name, shapes[name]):
            chosen[name] = Choice("F32")
            continue
        if base in _FLOATS or pure:
            wanted = base
        else:
            role = _role(name, tied)
            count = values if role == "value" else model.layers
            place = _Place(seen.get(role, 0), count, model.grouping, importance)
            wanted = _wanted(mix, base, role, place, model, shapes[name][-1])
            if role in seen:
                seen[role] += 1
        chosen[name] = _fitting(wanted, shapes[name][-1])
    return {name: chosen[name] for name in shapes}


def _wanted(mix: str, base: str, role: str, place: _Place, model: ModelFacts, columns: int) -> str:
    if role == "output":
        if mix == "MXFP4_MOE" or base == "Q8_0" or columns % BLOCK_TYPES[base].weights:
            return "Q8_0"
        return "Q6_K"
    if mix == "MXFP4_MOE":  # MXFP4 is for experts, and there are none
        return "Q8_0"
    rule = _RULES.get(role, {}).get(mix)
    wanted = (rule(place) if rule else None) or base
    if role == "value" and model.is_70b and wanted in ("Q3_K", "Q4_K"):
        return "Q5_K"  # eight heads share each value: little to store, much to lose
    return wanted


def _fitting(wanted: str, columns: int) -> Choice:
    """`wanted`, or what it falls back to for rows of `columns` values."""
    need = BLOCK_TYPES[wanted].weights
    if columns % need == 0:
        return Choice(wanted)
    smaller = _SMALLER_BLOCKS.get(wanted, wanted)
    fits = columns % BLOCK_TYPES[smaller].weights == 0
    return Choice(
        smaller if fits else "F16",
        f"{wanted} takes rows of a multiple of {need} values, these have {columns}",
    )


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor is quantized at all: a weight with two axes, and no position table."""
    axes = len(shape)
    while axes > 1 and shape[len(shape) - axes] == 1:  # ggml does not count outer axes of 1
        axes -= 1
    if axes < 2 or not name.endswith("weight"):
        return False
    return not name.endswith("_norm.weight") and name != "position_embd.weight"


def _role(name: str, tied: bool) -> str:
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "output"
    if "attn_qkv.weight" in name or "attn_v.weight" in name:
        return "value"
    if "ffn_down" in name:
        return "down"
    return "attention output" if "attn_output.weight" in name else "other"


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1
