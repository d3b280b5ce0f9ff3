"""Rotate a model's residual stream: the same function, without loud channels.

The stream x becomes x Q. Whoever writes into it (embedding, attention output, down projection)
writes rotated values; whoever reads it (through a norm) rotates back in its own weight. A norm
divides by the length of x, which a rotation does not change, but its *gain*, one number for each
channel, does not commute with Q: it is fused into the linears that read it first, and becomes 1.

LayerNorm also subtracts the mean of the channels, which does not commute either. The mean can be
taken out where the stream is written instead, since every layer adds to it: embeddings and writing
weights are centred, and the LayerNorm becomes an RMSNorm.

An output head that shares its tensor with the embedding cannot keep doing so (the head also takes
the final norm's gain): it is untied, and the report says so. Sources: Ashkboos et al. 2024,
"SliceGPT", section 3 (computational invariance, LayerNorm to RMSNorm); "QuaRot", section 4.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.core.errors import ModelError
from labkit.core.finite import require_finite
from labkit.models.residual import ResidualStream, residual_stream
from labkit.models.walking import weight_matrix
from labkit.quantize.rotation import random_hadamard, require_orthogonal, rotate_input
from labkit.quantize.rotation import rotate_output as rotated_output


@dataclass(frozen=True)
class Rotated:
    """A model that computes the same in a rotated stream.

    rotation: float64 [hidden, hidden]; notes: what else had to change, one sentence each.
    """

    model: nn.Module
    rotation: Tensor
    notes: tuple[str, ...]


def rotate(model: nn.Module, rotation: Tensor | None = None, seed: int = 0) -> Rotated:
    """A copy of `model` whose residual stream is rotated by `rotation` [hidden, hidden].

    A random Hadamard matrix of `seed` if none is given. The identity is allowed: it leaves a model
    whose norms are fused, and nothing else.

    Raises:
        ModelError: an architecture whose stream is not known.
        SchemeError, ShapeError: a rotation that is not orthogonal or of another size.
        NonFiniteError: weights with NaN or infinity, which a rotation would spread everywhere.
    """
    stream = residual_stream(model)
    hidden = model.get_submodule(stream.embeddings[0]).weight.shape[1]
    q = random_hadamard(hidden, seed) if rotation is None else rotation.to(torch.float64)
    require_orthogonal(q, hidden)
    for name, parameter in model.named_parameters():
        require_finite(parameter, name)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        notes = [*_untie(changed, stream), *fuse_norms(changed, stream)]
        _rotate_stream(changed, stream, q)
    return Rotated(changed, q, tuple(notes))


def _head(model: nn.Module) -> tuple[nn.Module, str]:
    """The projection to the vocabulary, and its name, which differs between families."""
    head = model.get_output_embeddings()
    return head, next(name for name, module in model.named_modules() if module is head)


def _untie(model: nn.Module, stream: ResidualStream) -> list[str]:
    """Give the head a tensor of its own where it shares the embedding's."""
    head, name = _head(model)
    embedding = model.get_submodule(stream.embeddings[0])
    if head.weight is not embedding.weight:
        return []
    head.weight = nn.Parameter(embedding.weight.detach().clone())
    model.config.tie_word_embeddings = False
    extra = head.weight.numel()
    return [
        f"{name} shared the tensor of {stream.embeddings[0]} and now has its own: "
        f"{extra:,} weights more to store."
    ]


def fuse_norms(model: nn.Module, stream: ResidualStream) -> list[str]:
    """Move every norm's gain (and bias) into the linears that read it, in place.

    LayerNorms become RMSNorms, their mean being taken out where the stream is written. Returns
    what else changed, in sentences.
    """
    notes = []
    head, name = _head(model)
    final = model.get_submodule(stream.final_norm)
    if getattr(final, "bias", None) is not None and head.bias is None:
        head.bias = nn.Parameter(head.weight.new_zeros(head.weight.shape[0]))
        notes.append(f"{name} got a bias, to take the one of {stream.final_norm}.")
    for block in model.get_submodule(stream.blocks):
        for norm, readers in stream.reads:
            _fuse(block.get_submodule(norm), [block.get_submodule(r) for r in readers], stream)
    _fuse(final, [head], stream)
    if stream.centred:
        _centre_writers(model, stream)
        for block in model.get_submodule(stream.blocks):
            for norm, _ in stream.reads:
                _become_rms(block, norm)
        _become_rms(model, stream.final_norm)
        notes.append("Every LayerNorm became an RMSNorm; the mean is taken out by the writers.")
    return notes


def _fuse(norm: nn.Module, readers: list[nn.Module], stream: ResidualStream) -> None:
    """y = W (g * n + b) + c  becomes  (W g) n + (c + W b)."""
    gain = norm.weight.to(torch.float64) + stream.gain_offset
    shift = getattr(norm, "bias", None)
    for reader in readers:
        weight = weight_matrix(reader)
        exact = weight.to(torch.float64)
        if shift is not None:
            if reader.bias is None:
                raise ModelError(
                    "a LayerNorm with bias in front of a linear layer without one",
                    where=type(reader).__name__,
                    remedy="Give the linear layer a bias of zeros before rotating.",
                )
            reader.bias.add_((exact @ shift.to(torch.float64)).to(reader.bias.dtype))
        weight.copy_((exact * gain).to(weight.dtype))
    norm.weight.fill_(1.0 - stream.gain_offset)
    if shift is not None:
        shift.zero_()


def _centre_writers(model: nn.Module, stream: ResidualStream) -> None:
    """Take the mean over channels out of everything that is added to the stream."""
    for name in stream.embeddings:
        table = model.get_submodule(name).weight
        table.sub_(table.to(torch.float64).mean(dim=1, keepdim=True).to(table.dtype))
    for writer in _writers(model, stream):
        weight = weight_matrix(writer)
        weight.sub_(weight.to(torch.float64).mean(dim=0, keepdim=True).to(weight.dtype))
        if writer.bias is not None:
            writer.bias.sub_(writer.bias.to(torch.float64).mean().to(writer.bias.dtype))


def _become_rms(parent: nn.Module, name: str) -> None:
    owner, _, child = name.rpartition(".")
    norm = parent.get_submodule(name)
    rms = nn.RMSNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    setattr(parent.get_submodule(owner), child, rms)


def _writers(model: nn.Module, stream: ResidualStream) -> list[nn.Module]:
    blocks = model.get_submodule(stream.blocks)
    return [block.get_submodule(name) for block in blocks for name in stream.writes]


def _rotate_stream(model: nn.Module, stream: ResidualStream, q: Tensor) -> None:
    for name in stream.embeddings:
        table = model.get_submodule(name).weight
        table.copy_(rotate_input(table, q))
    blocks = model.get_submodule(stream.blocks)
    readers = [
        block.get_submodule(r) for block in blocks for _, names in stream.reads for r in names
    ]
    for reader in [*readers, _head(model)[0]]:
        weight = weight_matrix(reader)
        weight.copy_(rotate_input(weight, q))
    for writer in _writers(model, stream):
        weight = weight_matrix(writer)
        weight.copy_(rotated_output(weight, q))
        if writer.bias is not None:
            writer.bias.copy_(rotated_output(writer.bias, q))
