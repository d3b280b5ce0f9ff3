"""Every Triton kernel becomes machine code for a GPU; none is needed for that.

The interpreter takes what the compiler refuses: types that differ between two turns of a loop,
shapes that no matrix unit has.
"""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import pytest

if find_spec("triton") is None:
    pytest.skip("Triton is not installed (optional)", allow_module_level=True)

from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from labkit.kernels.choose import interpreted
from labkit.kernels.gpu import attention, codebook, fp8, gguf, int4, int4_act8, int8, tokens

if "nvidia" not in backends or interpreted():
    pytest.skip("Triton has no compiler for CUDA here", allow_module_level=True)

INT4 = {"codes_ptr": ["*u8"], "scale_ptr": ["*fp16"], "zeros_ptr": ["*u8"], "columns_ptr": ["*i32"]}
ANY_X = {"x_ptr": ["*fp32", "*bf16"]}
BYTES = {name: ["*u8"] for name in ("packed_ptr", "blocks_ptr", "codes_ptr")}
BLOCKS = {"x_ptr": ["*bf16"]} | BYTES | {"ROWS": [32], "COLUMNS": [64]}

# Kernel -> what its arguments may be; a pointer that is not named is float32, a number int32.
KERNELS = {
    **{
        f"int4 {words}, chunks of {2 * half}": (
            int4._multiply,
            (ANY_X if half == 64 else {"x_ptr": ["*bf16"]})
            | INT4
            | {"HALF": [half], "ZERO": [8, -1], "ROWS": [int4._ROWS[words]]}
            | {"TOKENS": [count], "CHUNKS": [int4._BYTES[words] // half]},
        )
        for words, count in (("one", 1), ("several", int4._TOKENS))
        for half in (64, 16)
    },
    "int4_act8": (
        int4_act8._multiply,
        {"x_ptr": ["*i8"], "HALF": [64, 16], "ZERO": [8, -1]}
        | INT4
        | {"TOKENS": [int4_act8._TOKENS], "ROWS": [int4_act8._ROWS]},
    ),
    "int8": (
        int8._multiply,
        {"x_ptr": ["*i8"], "codes_ptr": ["*u8"], "OFFSET": [int8.OFFSET], "PANEL": [int8.PANEL]}
        | {"TOKENS": [int8._TOKENS], "COLUMNS": [int8._COLUMNS]},
    ),
    "codebook": (codebook._multiply, BLOCKS),
    "fp8": (fp8._multiply, BLOCKS),
    "tokens": (tokens._quantize, ANY_X | {"codes_ptr": ["*i8"], "BLOCK": [tokens._BLOCK]}),
    **{f"gguf {name}": (kernel, BLOCKS) for name, kernel in gguf._KERNELS.items()},
    "attention": (
        attention._attend,
        {"query_ptr": ANY_X["x_ptr"], "keys_ptr": ["*i8"], "values_ptr": ["*i8"], "FP8": [False]}
        | {"lengths_ptr": ["*i64"], "factor": ["fp32"], "DIM": [128], "BLOCK": [attention._BLOCK]},
    ),
    "attention fp8": (
        attention._attend,
        {"keys_ptr": ["*u8"], "values_ptr": ["*u8"], "FP8": [True], "lengths_ptr": ["*i64"]}
        | {"factor": ["fp32"], "DIM": [64], "BLOCK": [attention._BLOCK]},
    ),
}


# Matrix units differ from one generation to the next; the other kernels have none.
CASES = [(name, 90) for name in KERNELS] + [
    pytest.param(name, 80, marks=pytest.mark.slow)
    for name in ("int4 several, chunks of 32", "int4_act8", "int8")
]


@pytest.mark.parametrize(("name", "capability"), CASES)
def test_it_compiles(name, capability):
    kernel, choices = KERNELS[name]
    names = kernel.arg_names
    possible = [choices.get(own, ["*fp32"] if own.endswith("_ptr") else ["i32"]) for own in names]
    for chosen in itertools.product(*possible):
        types = {
            n: v if isinstance(v, str) else "constexpr" for n, v in zip(names, chosen, strict=True)
        }
        constants = {
            (place,): value for place, value in enumerate(chosen) if not isinstance(value, str)
        }
        made = compile(
            ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32)
        )
        assert made.asm["cubin"].startswith(b"\x7fELF"), chosen
