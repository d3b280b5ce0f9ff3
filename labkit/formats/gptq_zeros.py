"""Zero-points in the GPTQ format: v1 stores them minus 1, v2 as they are.

v1 stores z - 1, and its readers add 1 again. A zero-point of 0, which every
asymmetric group of non-negative weights has, would be stored as -1 and there is no such code. What
then happens differs even inside AutoGPTQ 0.7.1: its writer's -1 spills into the neighbours' bits;
of its readers `qlinear_cuda_old` masks after adding (15 + 1 = 0, at 2, 4 and 8 bits), but not at 3
bits, and `qlinear_cuda` (act-order) makes it 16. GPTQModel subtracts from and adds to whole words,
so that its own reader finds the borrowed bits again and no other does; it therefore refuses
asymmetric v1 that it did not write. labkit refuses to write a zero-point of 0 in v1 and to guess
when it reads one; v2 (checkpoint_format "gptq_v2") stores z itself and has no such hole.
Sources: AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda_old.py and qlinear_cuda.py (pack, forward);
GPTQModel 7.6.0, utils/model.py (convert_gptq_v2_to_v1_format_module), models/loader.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkit.core.errors import FormatError

V1, V2 = VERSIONS = ("gptq", "gptq_v2")


def version_of(quantization: Mapping[str, object]) -> str:
    """The version that a config states; GPTQModel calls the key "format" in its own file."""
    stated = (quantization.get("checkpoint_format"), quantization.get("format"))
    return V2 if V2 in stated else V1


def to_stored(zeros: torch.Tensor, version: str, layer: str) -> torch.Tensor:
    """Zero-points 0 .. 2^bits-1 as the version stores them.

    Raises:
        FormatError: a zero-point of 0, in v1.
    """
    if version == V2:
        return zeros
    if bool((zeros == 0).any()):
        raise FormatError(
            f"layer {layer!r} has {int((zeros == 0).sum())} zero-points of 0, which v1 would store"
            " as -1",
            where="gptq v1",
            remedy='Save with version="gptq_v2", or quantize symmetrically.',
        )
    return zeros - 1


def from_stored(zeros: torch.Tensor, version: str, bits: int, where: str) -> torch.Tensor:
    """What the stored numbers stand for.

    Raises:
        FormatError: the largest number in v1, which is what a writer makes of a zero-point of 0.
    """
    if version == V2:
        return zeros
    if bool((zeros == 2**bits - 1).any()):
        raise FormatError(
            f"{2**bits - 1} in v1, which some readers take as a zero-point of 0 and some as "
            f"{2**bits}",
            where=where,
            remedy="It was written from a zero-point of 0, which v1 cannot hold, and may have"
            " damaged its neighbours. Quantize again, symmetrically or to gptq_v2.",
        )
    return zeros + 1
