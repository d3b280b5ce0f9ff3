"""QLoRA: a frozen 4-bit model, and a thin float matrix beside each layer that learns.

    y = dequantize(codes) x + alpha / rank · B A x       A [rank, in], B [out, rank], B = 0 at first

Only A and B have gradients and optimizer state, a percent of the weights; the codes never change.
Afterwards there are two ways on: keep both (4 bits plus the adapter), or add B A into the weight
and round again, which costs another rounding error. `merge` does the addition; the base is what
was dequantized, since that is what the adapter was trained beside.

The adapters are Hugging Face's peft; the base is any `labkit.core.quantized.Quantized`, NF4 as a
rule. Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from labkit.core.codebook import CodebookTensor
from labkit.core.errors import ModelError, SchemeError
from labkit.core.quantized import Quantized
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import nf4

ADAPTER = "default"  # peft's own name for the only adapter of a model


class _ThroughCodes(Function):
    """x @ W.T, keeping the codes of W for the way back instead of W itself."""

    @staticmethod
    def forward(ctx, x: Tensor, quantized: Quantized) -> Tensor:
        ctx.quantized = quantized
        return functional.linear(x, _dequantized(quantized).to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ _dequantized(ctx.quantized).to(grad.dtype), None


class FrozenLinear(nn.Linear):
    """A linear layer that holds codes and no weight; the gradient passes, and changes nothing.

    `weight` is None, so that whatever would change it fails, peft's own merge included: `merge`
    is the way.
    """

    def __init__(self, quantized: Quantized, bias: Tensor | None) -> None:
        rows, columns = quantized.shape
        super().__init__(columns, rows, bias=False, device="meta")
        self.weight = None
        self.quantized = quantized
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    @property
    def qweight(self) -> Tensor:
        """The codes, by the name under which peft looks for the device of a layer."""
        return next(part for part in vars(self.quantized).values() if isinstance(part, Tensor))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in x's dtype; the weight is dequantized at each call."""
        y = _ThroughCodes.apply(x, self.quantized)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return repr(self.quantized)


def freeze_base(
    model: nn.Module, quantize: Callable[[Tensor], Quantized] = nf4.quantize
) -> nn.Module:
    """A copy of `model` with the linear layers of its blocks as frozen codes; nothing in it learns.

    Args:
        quantize: weight [out, in] to its codes.

    Raises:
        ModelError: no blocks. What `quantize` raises, with the layer's name.
    """
    frozen = copy.deepcopy(model).requires_grad_(False)
    for name, layer in linear_layers(frozen).items():
        try:
            quantized = quantize(weight_matrix(layer).detach())
        except (ValueError, RuntimeError) as error:
            error.add_note(f"in layer {name}")
            raise
        parent, _, leaf = name.rpartition(".")
        setattr(frozen.get_submodule(parent), leaf, FrozenLinear(quantized, layer.bias))
    return frozen


def add_adapters(
    model: nn.Module, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0, seed: int = 0
) -> nn.Module:
    """Put a LoRA adapter beside every linear layer of the blocks, in place; they alone learn.

    The base may be what `freeze_base` returned, bitsandbytes' own 4-bit layers, or plain floats.

    Args:
        rank: rows of A.
        alpha: the adapter counts alpha / rank.
        seed: of A; B starts at 0, so that the model's outputs do not change yet.

    Raises:
        ModelError: peft is not installed, or the model has adapters already.
        SchemeError: a rank below 1.
    """
    if rank < 1:
        raise SchemeError(
            f"rank {rank}", where="LoRA", remedy="Choose at least 1; 8 to 64 is usual."
        )
    if adapted_layers(model):
        raise ModelError("it has adapters already", where=type(model).__name__)
    peft = _peft()
    model.requires_grad_(False)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(linear_layers(model))
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.inject_adapter_in_model(config, model)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with an adapter, by the name of the layer that they stand in for."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """A copy in plain floats: each weight is the base's dequantized one plus alpha / rank · B A.

    Quantize it again like any other model: `labkit.models.apply`, `labkit.models.blockwise`.

    Raises:
        ModelError: no adapters.
    """
    if not adapted_layers(model):
        raise ModelError(
            "no adapters to merge", where=type(model).__name__, remedy="Call add_adapters first."
        )
    merged = copy.deepcopy(model)
    for name, layer in adapted_layers(merged).items():
        change = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
        weight = base_weight(layer.base_layer) + layer.scaling[ADAPTER] * change
        bias = layer.base_layer.bias
        new = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        new.weight = nn.Parameter(weight)
        if bias is not None:
            new.bias = nn.Parameter(bias.detach().float().clone())
        parent, _, leaf = name.rpartition(".")
        setattr(merged.get_submodule(parent), leaf, new)
    return merged.requires_grad_(False).eval()


def base_weight(layer: nn.Module) -> Tensor:
    """The float32 weight [out, in] of a base layer: ours, bitsandbytes' own, or plain floats."""
    if isinstance(layer, FrozenLinear):
        return _dequantized(layer.quantized)
    if hasattr(layer.weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return weight_matrix(layer).detach().float()


def _dequantized(quantized: Quantized) -> Tensor:
    """float32 [out, in]; NF4 by its fast loop, for this happens twice a step in every layer."""
    return (
        nf4.dequantize(quantized)
        if isinstance(quantized, CodebookTensor)
        else quantized.dequantize()
    )


def _peft():
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            "peft is not installed", where="LoRA", remedy="Run `pip install peft`."
        ) from error
    return peft
