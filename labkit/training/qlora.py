"""QLoRA: a frozen 4-bit model, and a thin float matrix beside each layer that learns.

    y = dequantize(codes) x + alpha / rank · B A x       A [rank, in], B [out, rank], B = 0 at first

Only A and B have gradients and optimizer state, a percent of the weights; the codes never change.
Afterwards there are two ways on: keep both (4 bits plus the adapter), or add B A into the weight
and round again, which costs another rounding error. `merge` does the addition; the base is what
was dequantized, since that is what the adapter was trained beside.

The adapters are Hugging Face's peft; the base is any `labkit.core.quantized.Quantized`, NF4 as a
rule. All of it, on the bundled model:

    docs = load_numpy_docs("train").documents                       # labkit.data.numpy_docs
    tuned = add_adapters(freeze_base(model), rank=8, alpha=16)
    history = train(                                                # labkit.training.trainer
        tuned, document_batches(tokenizer, docs), TrainSettings(steps=40, warmup=4, lr=5e-3)
    )
    save_adapters(tuned, "adapters")                                # labkit.training.qlora_files
    merged = merge(tuned)
    again = map_weights(merged, lambda name, weight: nf4.quantize(weight).dequantize())

Double quantization is `freeze_base(model, partial(nf4.quantize, double_quantization=True))`.
Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from labkit.core.codebook import CodebookTensor
from labkit.core.errors import ModelError, SchemeError
from labkit.core.quantized import Quantized
from labkit.models.walking import is_linear, linear_layers, weight_matrix
from labkit.quantize import nf4
from labkit.training.qlora_bitsandbytes import (
    dequantized,
    is_four_bit,
    keep_unpacked,
    require_usable,
)

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

    The base may be what `freeze_base` or `bitsandbytes_base` returned, or plain floats.

    Args:
        rank: rows of A.
        alpha: the adapter counts alpha / rank.
        dropout: share of an adapter's inputs that are set to 0 in training.
        seed: of A; B starts at 0, so that the model's outputs do not change yet.

    Raises:
        ModelError: peft is not installed, the model has adapters already, or 4-bit layers of
            bitsandbytes that cannot be trained beside (`labkit.training.qlora_bitsandbytes`).
        SchemeError: a rank below 1, an alpha that is not positive and finite, a dropout outside
            of 0 to 1.
    """
    return inject(model, list(linear_layers(model)), rank, alpha, dropout, seed)


def inject(
    model: nn.Module, layers: Sequence[str], rank: int, alpha: float, dropout: float, seed: int
) -> nn.Module:
    """As `add_adapters`, beside the named layers alone."""
    _require_settings(rank, alpha, dropout)
    require_bare(model)
    peft = _peft()
    keep_unpacked(model)
    model.requires_grad_(False)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.inject_adapter_in_model(config, model)


def require_bare(model: nn.Module) -> None:
    """Return if the model has no adapters yet; else raise ModelError."""
    if adapted_layers(model):
        raise ModelError(
            "it has adapters already", where=type(model).__name__, remedy="Merge them first."
        )


def _require_settings(rank: int, alpha: float, dropout: float) -> None:
    if type(rank) is not int or rank < 1:
        raise SchemeError(
            f"rank {rank}", where="LoRA", remedy="Choose at least 1; 8 to 64 is usual."
        )
    if not (math.isfinite(alpha) and alpha > 0 and 0 <= dropout < 1):
        raise SchemeError(
            f"alpha {alpha}, dropout {dropout}",
            where="LoRA",
            remedy="Choose a finite alpha above 0 (twice the rank is usual) and a dropout from 0"
            " to below 1.",
        )


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


def adapter_parameters(model: nn.Module) -> int:
    """How many numbers the adapters hold: all that is trained."""
    return sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)


def base_weight(layer: nn.Module) -> Tensor:
    """The float32 weight [out, in] of a base layer: ours, bitsandbytes' own, or plain floats.

    Raises:
        ModelError: a layer of bitsandbytes that does not compute with what it stores.
    """
    if isinstance(layer, FrozenLinear):
        return _dequantized(layer.quantized)
    if is_four_bit(layer):
        require_usable(layer, f"of {layer.out_features} x {layer.in_features}")
        return dequantized(layer)
    return weight_matrix(layer).detach().float()


def base_shape(layer: nn.Module) -> tuple[int, int] | None:
    """[out, in] of whatever can be a base layer; None of anything else."""
    if isinstance(layer, FrozenLinear):
        return tuple(layer.quantized.shape)
    if is_four_bit(layer):
        return tuple(layer.weight.quant_state.shape)
    return tuple(weight_matrix(layer).shape) if is_linear(layer) else None


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
