"""The parts of `Int4Panels` as compiled code takes them."""

from __future__ import annotations

import numpy as np
import torch

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.int4_panels import Int4Panels

TOKENS = 32  # so many tokens' x stay in the cache while panels pass by
_NO_ZEROS = np.empty((0, 0), np.uint8)


def arrays(weight: Int4Panels) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
    """(codes, scales, whether these are float16, zero-points): bytes, a row for each panel."""
    codes = weight.codes.numpy().reshape(len(weight.codes), -1)
    scales = weight.scale.numpy().reshape(len(codes), -1).view(np.uint8)
    zero = weight.zero_point
    zeros = _NO_ZEROS if zero is None else zero.numpy().reshape(len(codes), -1)
    return codes, scales, weight.scale.dtype == torch.float16, zeros


@inlined
def panel_place(codes, scales, zeros, panel):
    """Where a panel's codes, scales and zero-points lie; 0 where there are no zero-points."""
    zero = np.int64(0)
    if zeros.shape[0] > 0:
        zero = address_of(zeros) + panel * zeros.shape[1]
    place = address_of(codes) + panel * codes.shape[1]
    return place, address_of(scales) + panel * scales.shape[1], zero
