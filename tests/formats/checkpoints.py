"""Small checkpoints for the tests of formats: a tiny Llama, or bare layers without a model."""

from __future__ import annotations

import torch
from tiny_models import tiny

from labkit.core.quantized import Quantized
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.formats import Checkpoint
from labkit.models.quantized import checkpoint_from
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import rtn


def scheme(bits: int, symmetric: bool, group: int | None) -> QuantScheme:
    """Full-range when symmetric, as the formats have it."""
    granularity = "channel" if group is None else "group"
    return QuantScheme(bits, symmetric, granularity, group, narrow_range=not symmetric)


def random_layer(
    rows: int, columns: int, what: QuantScheme, seed: int = 0, *, shuffled: bool = False
) -> QuantizedTensor:
    """Every code, scale and (from 1 on) zero-point is as likely as any other."""
    g = torch.Generator().manual_seed(seed)
    groups = columns // what.group_size if what.group_size else 1
    codes = torch.randint(what.qmin, what.qmax + 1, (rows, columns), generator=g)
    scale = (torch.rand(rows, groups, generator=g) + 0.1).to(torch.float16)
    zeros = None
    if not what.symmetric:
        zeros = torch.randint(1, what.qmax + 1, (rows, groups), generator=g, dtype=torch.int32)
    g_idx = None
    if shuffled:
        order = torch.randperm(columns, generator=g)
        g_idx = (torch.arange(columns) // (columns // groups))[order].to(torch.int32)
    return QuantizedTensor(codes.to(what.code_dtype), scale, zeros, what, g_idx)


def bare(*layers: Quantized) -> Checkpoint:
    """Layers with one more tensor and a tokenizer file; no model can be made of it."""
    named = {f"model.layers.{i}.mlp.up_proj": layer for i, layer in enumerate(layers)}
    tensors = {"model.norm.weight": torch.arange(8.0), "lm_head.weight": torch.ones(4, 8)}
    return Checkpoint({"model_type": "llama"}, tensors, named, {"tokenizer.json": b"{}\n"})


def tiny_checkpoint(what: QuantScheme, family: str = "llama", seed: int = 0) -> Checkpoint:
    """Every linear layer of a tiny model, rounded to nearest."""
    model = tiny(family, seed)
    layers = {
        name: rtn.quantize(weight_matrix(layer), what)
        for name, layer in linear_layers(model).items()
    }
    return checkpoint_from(model, layers)


def same_layer(ours: Quantized, theirs: Quantized) -> bool:
    """Field by field, bit by bit."""
    if not isinstance(ours, QuantizedTensor) or not isinstance(theirs, QuantizedTensor):
        return False
    pairs = ((ours.zero_point, theirs.zero_point), (ours.g_idx, theirs.g_idx))
    return (
        ours.scheme == theirs.scheme
        and torch.equal(ours.codes, theirs.codes)
        and ours.codes.dtype == theirs.codes.dtype
        and torch.equal(ours.scale, theirs.scale)
        and ours.scale.dtype == theirs.scale.dtype
        and all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)
    )


def same_checkpoint(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Config, files, tensors and layers; reading everything."""
    return (
        ours.config == theirs.config
        and dict(ours.files) == dict(theirs.files)
        and sorted(ours.tensors) == sorted(theirs.tensors)
        and all(torch.equal(ours.tensors[n], theirs.tensors[n]) for n in ours.tensors)
        and sorted(ours.layers) == sorted(theirs.layers)
        and all(same_layer(ours.layers[n], theirs.layers[n]) for n in ours.layers)
    )
