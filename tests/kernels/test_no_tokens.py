"""A product of no tokens calls no kernel: one that counts on a first would write beside it."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from labkit.core.float8_tensor import Float8Tensor
from labkit.kernels import (
    GgufPanels,
    Int4Panels,
    Int8Weight,
    codebook_linear,
    fp8_linear,
    gguf_linear,
    int4_linear,
    int8_linear,
    panel_linear,
    quantize_tokens,
)
from labkit.quantize import gguf, nf4
from tests.kernels.cases import int4_weight
from tests.kernels.test_int8 import _weight as int8_codes

NOTHING = torch.empty(2, 0, 256)


def _int4(bits, form=lambda rows: rows):
    weight = form(int4_weight(9, 256, 128, False)[0])
    return int4_linear(NOTHING, weight, activation_bits=bits)


def _int8():
    packed = Int8Weight.from_quantized(int8_codes(9, 256))
    return int8_linear(NOTHING.to(torch.int8), torch.ones(2, 0, 1), packed)


def _blocks():
    return torch.from_numpy(gguf.quantize(torch.randn(9, 256), "Q4_K"))


CASES = {
    "int4": lambda: _int4(16),
    "int4_act8": lambda: _int4(8),
    "int4_panels": lambda: _int4(16, Int4Panels.from_rows),
    "int4_panels_act8": lambda: _int4(8, Int4Panels.from_rows),
    "int8": _int8,
    "gguf": lambda: gguf_linear(NOTHING, _blocks(), "Q4_K"),
    "panels": lambda: panel_linear(NOTHING, GgufPanels.from_blocks(_blocks(), "Q4_K")),
    "codebook": lambda: codebook_linear(NOTHING, nf4.quantize(torch.randn(9, 256))),
    "fp8": lambda: fp8_linear(NOTHING, Float8Tensor.quantize(torch.randn(9, 256))),
}


@pytest.mark.parametrize("operation", CASES)
def test_no_kernel_is_called(operation, monkeypatch):
    def called(*_):
        raise AssertionError("called with no tokens")

    monkeypatch.setattr(import_module(f"labkit.kernels.cpu.{operation}"), "linear", called)
    assert CASES[operation]().shape == (2, 0, 9)


def test_no_activations_to_quantize():
    codes, scale = quantize_tokens(NOTHING)
    assert codes.shape == (2, 0, 256) and codes.dtype == torch.int8
    assert scale.shape == (2, 0, 1) and scale.dtype == torch.float32
