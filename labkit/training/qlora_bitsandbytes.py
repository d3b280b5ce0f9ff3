"""The same frozen base in bitsandbytes' own layers, and what to mind when they run on a CPU.

    add_adapters(bitsandbytes_base(model))     # beside add_adapters(freeze_base(model))

The bytes are those of `labkit.quantize.nf4`. bitsandbytes 0.50 does two things on a CPU that would
spoil a training without a word, so both are refused or switched off here:

- With AVX512-BF16 a layer in evaluation mode repacks its codes at its first forward pass and rounds
  its magnitudes to bfloat16. It has no gradient afterwards, and its bytes no longer mean what they
  say. One look at the held-out loss amid the training is enough. `keep_unpacked` forbids it.
- With AVX-512 and rows that are no multiple of the block, it dequantizes with magnitudes of other
  blocks. `require_usable` compares what it computes with what it stores.
"""

from __future__ import annotations

import copy
from types import ModuleType

import torch
from torch import Tensor, nn

from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.core.errors import ModelError
from labkit.core.finite import require_finite
from labkit.models.walking import linear_layers, weight_matrix

_REPACKED = "packing_format_for_cpu"
# The largest rounding of a magnitude or a value is bfloat16's; a wrong magnitude is far off.
_SAME = 1e-2


def bitsandbytes_base(model: nn.Module, *, double_quantization: bool = False) -> nn.Module:
    """A copy of `model` with the linear layers of its blocks as `bitsandbytes.nn.Linear4bit`, NF4.

    Blocks of 64 weights; float32 computation, so that it compares with `freeze_base`.

    Args:
        double_quantization: keep the magnitudes of the blocks in 8 bits.

    Raises:
        ModelError: bitsandbytes is not installed, no blocks, or a layer that it cannot dequantize
            on this machine (see above).
        NonFiniteError: a weight holds NaN or infinity.
    """
    bnb = _bitsandbytes()
    frozen = copy.deepcopy(model).requires_grad_(False)
    for name, layer in linear_layers(frozen).items():
        weight = weight_matrix(layer).detach().float().contiguous().clone()
        require_finite(weight, f"layer {name}")
        rows, columns = weight.shape
        options = {"quant_type": "nf4", "compress_statistics": double_quantization}
        new = bnb.nn.Linear4bit(
            columns, rows, layer.bias is not None, compute_dtype=torch.float32, **options
        )
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, **options)
        if layer.bias is not None:
            new.bias = nn.Parameter(layer.bias.detach().float().clone(), requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(frozen.get_submodule(parent), leaf, new.to("cpu"))  # this quantizes it
    keep_unpacked(frozen)
    return frozen


def is_four_bit(layer: nn.Module) -> bool:
    """Whether this is a quantized 4-bit layer of bitsandbytes."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def keep_unpacked(model: nn.Module) -> None:
    """Check every 4-bit layer of bitsandbytes, and forbid it to repack its codes; in place.

    Raises:
        ModelError: a layer that has been repacked already, or one that is dequantized wrongly.
    """
    for name, layer in model.named_modules():
        if is_four_bit(layer):
            require_usable(layer, name)
            layer.support_avx512bf16_for_cpu = False


def require_usable(layer: nn.Module, name: str) -> None:
    """Return if a 4-bit layer computes with the weight that it stores.

    Raises:
        ModelError: it was repacked, or is dequantized with magnitudes of other blocks.
    """
    state = layer.weight.quant_state
    if getattr(state, _REPACKED, False):
        raise ModelError(
            "its codes were repacked for inference: it has no gradient, and its magnitudes are"
            " rounded to bfloat16",
            where=f"layer {name} of bitsandbytes",
            remedy="Load the model again, and add the adapters before the first forward pass.",
        )
    wanted = stored_weight(layer)
    found = dequantized(layer)
    if not torch.allclose(found, wanted, rtol=_SAME, atol=_SAME * 1e-3 * float(wanted.abs().max())):
        raise ModelError(
            f"bitsandbytes dequantizes it with magnitudes of other blocks: rows of"
            f" {state.shape[-1]} weights, blocks of {state.blocksize}",
            where=f"layer {name} of bitsandbytes",
            remedy="Take labkit.training.qlora.freeze_base, or a block size that divides the rows.",
        )


def dequantized(layer: nn.Module) -> Tensor:
    """The weight that a 4-bit layer computes with, float32 [out, in]."""
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    return dequantize_4bit(layer.weight.data, state).float().reshape(state.shape)


def stored_weight(layer: nn.Module) -> Tensor:
    """The weight that the codes and magnitudes of a 4-bit layer stand for, float32 [out, in]."""
    return as_codebook(layer).dequantize()


def as_codebook(layer: nn.Module) -> CodebookTensor:
    """The codes and magnitudes of a 4-bit layer, as labkit holds them; they share its memory."""
    state = layer.weight.quant_state
    absmax: Tensor | NestedAbsmax = state.absmax
    if state.nested:
        inner = state.state2
        absmax = NestedAbsmax(
            state.absmax, inner.absmax, inner.code, float(state.offset), inner.blocksize
        )
    packed = layer.weight.data.contiguous().reshape(-1).view(torch.uint8)
    return CodebookTensor(
        packed, absmax, torch.Size(state.shape), state.quant_type, state.blocksize, state.dtype
    )


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ModelError(
            "bitsandbytes is not installed", where="QLoRA", remedy="Run `pip install bitsandbytes`."
        ) from error
    return bitsandbytes
