"""Every panel product with its memory beside pages that nobody may touch; prints "inside"."""

from __future__ import annotations

import numpy as np
import torch

from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_products import LAST_FLOAT, panel_product
from labkit.kernels.cpu.runs import round_run, sum_run
from labkit.kernels.gguf_panels import GgufPanels
from labkit.quantize import gguf
from tests.kernels.guarded_cases import guarded

_COLUMNS, _TOKENS = 512, 5


def _guarded(array: np.ndarray, at_end: bool) -> np.ndarray:
    return guarded(torch.from_numpy(array), at_end).numpy()


def _check(type_name: str, eight: bool, at_end: bool) -> None:
    rng = np.random.default_rng(0)
    blocks = gguf.quantize(rng.standard_normal((16, _COLUMNS), np.float32), type_name)
    weight = GgufPanels.from_blocks(torch.from_numpy(blocks), type_name)
    panel = _guarded(weight.data[0].numpy(), at_end)
    x = _guarded(rng.standard_normal((_TOKENS, _COLUMNS), np.float32), at_end)
    codes = _guarded(np.zeros((_TOKENS, _COLUMNS), np.uint8), at_end)
    scale = _guarded(np.zeros((_TOKENS, _COLUMNS // 32), np.float32), at_end)
    less = _guarded(np.zeros((_TOKENS, _COLUMNS // 16), np.float32), at_end)
    out = _guarded(np.zeros((_TOKENS, 16), np.float32), at_end)
    for token in range(_TOKENS):
        for block in range(_COLUMNS // 32):
            if eight:
                round_run(x[token], block, codes[token], scale[token], less[token])
            else:
                sum_run(x[token], block, less[token])
    kind = NUMBERS[type_name]
    panel_product(kind, panel.ctypes.data, _COLUMNS, eight, x, codes, scale, less, out, 0)
    used = x.astype(np.float64)
    if eight and kind > LAST_FLOAT:
        used = codes.view(np.int8).reshape(_TOKENS, -1, 32) * scale[:, :, None].astype(np.float64)
        used = used.reshape(x.shape)
    decoded = gguf.dequantize(blocks, type_name).astype(np.float64)
    assert (np.abs(out - used @ decoded.T) <= 1e-6 * np.abs(used) @ np.abs(decoded).T).all()


if __name__ == "__main__":
    for name in NUMBERS:
        for rounded in (True, False):
            for end in (True, False):
                _check(name, rounded, end)
    print("inside")
