"""From a float model to one that is trained with rounded numbers: same names, same parameters.

    prepare(model, QatConfig(weights=QuantScheme(3, narrow_range=False)))

In a transformer that is every linear layer inside the blocks, as for every other method here; in a
model without blocks (a convolution net) every linear layer and convolution, each convolution
together with the batch norm behind it. What stays in floating point is said aloud.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from labkit.core.errors import LabkitError, ModelError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.models.walking import is_linear, linear_layers
from labkit.training.batch_norm import QatConvBn2d
from labkit.training.fake_quant import FakeQuant
from labkit.training.layers import QatConv2d, QatEmbedding, QatLinear, rounders
from labkit.training.lsq import LearnedScale, Start
from labkit.training.pact import LearnedClip

KEYS_AND_VALUES = ("k_proj", "v_proj")


@dataclass(frozen=True)
class QatConfig:
    """What is rounded, and how ranges are found.

    Args:
        weights: of every layer that is replaced.
        inputs: of the same layers; "token" is made on the spot, "tensor" is static; None for none.
        embedding: the table, and the head where the two are tied; None to leave them.
        cache: what `k_proj` and `v_proj` give, as a quantized KV cache holds it (keys before their
            rotation); "token" or "tensor"; None to leave it.
        scales: "learned" (LSQ) or "minmax" (ranges follow the tensors) for weights and for static
            inputs. What is made on the spot is never learned.
        activations: "scales", as above, or "pact": static inputs are clipped where it is learned
            (`labkit.training.pact.LearnedClip`), from their largest value downwards; symmetric, but
            behind a ReLU.
        start: where learned weight scales start (`LearnedScale`).
        keep: names of layers to leave alone; "*" stands for anything.
        scale_dtype: what the weights' scales are stored in; GPTQ files hold float16.

    Raises:
        SchemeError: "pact" for inputs that are not static.
    """

    weights: QuantScheme
    inputs: QuantScheme | None = None
    embedding: QuantScheme | None = None
    cache: QuantScheme | None = None
    scales: Literal["learned", "minmax"] = "learned"
    activations: Literal["scales", "pact"] = "scales"
    start: Start = "mse"
    keep: tuple[str, ...] = ()
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        static = self.inputs is not None and self.inputs.granularity == "tensor"
        if self.activations == "pact" and not static:
            raise SchemeError(
                f'activations="pact" for inputs in {self.inputs}',
                where="QatConfig",
                remedy='A learned clip is one number for all tokens: inputs by "tensor".',
            )


def prepare(
    model: nn.Module, config: QatConfig, *, tell: Callable[[str], None] = print
) -> nn.Module:
    """A copy of `model`, in its mode, whose layers round; every parameter wants a gradient.

    For some layers in 4 bits and others in 8, prepare twice, each time with the others in `keep`.

    Args:
        tell: gets one line about the layers that stay in floating point, if there are any.

    Raises:
        ModelError: nothing to quantize, a name in `keep` that no layer has, or a cache asked for
            in a model whose keys and values come out of one fused layer.
        GroupSizeError, NonFiniteError, SchemeError, CalibrationError: what a layer raises, with
            its name.
    """
    prepared = copy.deepcopy(model).requires_grad_(True)
    targets = _without_kept(_targets(prepared), config.keep, prepared)
    if config.cache and not any(_holds_cache(name) for name in targets):
        raise ModelError(
            f"no layers named {' and '.join(KEYS_AND_VALUES)}",
            where=type(model).__name__,
            remedy="Leave cache out: fused projections give queries, keys and values at once.",
        )
    norms = _norms_behind(prepared)
    for name, layer in targets.items():
        try:
            new = _replacement(name, layer, norms.get(name), config)
        except LabkitError as error:
            error.add_note(f"in layer {name}")
            raise
        _replace(prepared, name, new)
        if isinstance(new, QatConvBn2d):
            _replace(prepared, _name_of(prepared, new.norm, below=name), nn.Identity())
    done = set(targets) | _prepare_embedding(prepared, config)
    done |= {name for name, layer in model.named_modules() if hasattr(layer, "weight_quant")}
    for name, module in rounders(prepared).items():
        module.place = name
    left = [name for name, layer in model.named_modules() if _countable(layer) and name not in done]
    if left:
        tell(f"In floating point: {', '.join(left)}.")
    return prepared


def freeze_ranges(model: nn.Module, frozen: bool = True) -> None:
    """Keep every watched range (`FakeQuant`) and batch statistic from now on, or let them go."""
    for module in model.modules():
        if isinstance(module, FakeQuant):
            module.freeze(frozen)
        elif isinstance(module, QatConvBn2d):
            module.statistics_frozen = frozen


@torch.no_grad()
def observe(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] = lambda model, batch: model(batch),
) -> None:
    """Show every range some data before training; nothing is learned, statistics stay."""
    mode, watching = model.training, rounders(model).values()
    model.eval()
    for module in watching:
        module.train()
    for batch in batches:
        forward(model, batch)
    model.train(mode)


def _targets(model: nn.Module) -> dict[str, nn.Module]:
    blocks = any(isinstance(module, nn.ModuleList) for module in model.modules())
    kinds = (nn.Linear, nn.Conv2d)
    return (linear_layers(model) if blocks else {}) or {
        name: module for name, module in model.named_modules() if isinstance(module, kinds)
    }


def _without_kept(
    layers: dict[str, nn.Module], keep: tuple[str, ...], model: nn.Module
) -> dict[str, nn.Module]:
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ModelError(
                f"no layer is named {pattern!r}",
                where="keep",
                remedy=f"Layers have names such as {next(iter(layers), 'none')}.",
            )
    chosen = {
        name: layer
        for name, layer in layers.items()
        if not any(fnmatchcase(name, pattern) for pattern in keep)
    }
    if not chosen:
        raise ModelError("no layer is left to quantize", where=type(model).__name__)
    return chosen


def _norms_behind(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Batch norms by the name of the convolution that is registered right before them.

    That is the order in which residual nets and `nn.Sequential` are written. A norm that is called
    elsewhere would make another function of the model: compare the two before training.
    """
    found = {}
    for parent_name, parent in model.named_modules():
        for (name, layer), (_, norm) in pairwise(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                found[f"{parent_name}.{name}".lstrip(".")] = norm
    return found


def _replacement(
    name: str, layer: nn.Module, norm: nn.BatchNorm2d | None, config: QatConfig
) -> nn.Module:
    features = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.weight.shape[-1]
    inputs = _input_quant(config, features)
    if isinstance(layer, nn.Conv2d) and norm is not None:
        # A learned scale would have to start from the product with the norm, which still moves.
        weights = FakeQuant(config.weights, scale_dtype=config.scale_dtype)
        return QatConvBn2d.from_float(layer, norm, weights, inputs)
    if isinstance(layer, nn.Conv2d):
        return QatConv2d.from_float(layer, _weight_quant(layer.weight, config), inputs)
    outputs = _on_the_spot(config.cache) if config.cache and _holds_cache(name) else None
    linear = QatLinear.from_float(layer, nn.Identity(), inputs, outputs)
    linear.weight_quant = _weight_quant(linear.weight, config)
    return linear


def _weight_quant(
    weight: torch.Tensor, config: QatConfig, scheme: QuantScheme | None = None
) -> nn.Module:
    scheme = scheme or config.weights
    if config.scales == "learned":
        start = config.start
        return LearnedScale.of_weight(weight, scheme, start=start, scale_dtype=config.scale_dtype)
    fake = FakeQuant(scheme, scale_dtype=config.scale_dtype)
    fake.quantized(weight)  # refuses now what the scheme does not fit
    return fake


def _input_quant(config: QatConfig, features: int) -> nn.Module | None:
    scheme = config.inputs
    if scheme is None:
        return None
    if config.activations == "pact":
        return LearnedClip(scheme, None)
    if scheme.granularity == "tensor" and config.scales == "learned":
        # 8 bits are enough for the whole range: there is no need to clip from the start.
        return LearnedScale(scheme, (), features, start="minmax")
    return _on_the_spot(scheme)


def _on_the_spot(scheme: QuantScheme) -> FakeQuant:
    return FakeQuant(scheme, "moving" if scheme.granularity == "tensor" else "current")


def _holds_cache(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in KEYS_AND_VALUES


def _prepare_embedding(model: nn.Module, config: QatConfig) -> set[str]:
    """Names of the layers that were replaced: the table, and the head if it is the same weight."""
    if config.embedding is None:
        return set()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    quant = _weight_quant(table.weight, config, config.embedding)
    done = {_name_of(model, table)}
    model.set_input_embeddings(QatEmbedding.from_float(table, quant))
    if head is not None and head.weight is table.weight:
        done.add(_name_of(model, head))
        model.set_output_embeddings(QatLinear.from_float(head, quant))
    return done


def _countable(layer: nn.Module) -> bool:
    return is_linear(layer) or isinstance(layer, nn.Embedding | nn.Conv2d)


def _name_of(model: nn.Module, wanted: nn.Module, below: str | None = None) -> str:
    """The name of a module; not the one that it has inside of the module named `below`."""
    for name, module in model.named_modules(remove_duplicate=False):
        if module is wanted and (below is None or not name.startswith(f"{below}.")):
            return name
    raise ModelError("a module that the model does not hold", where=type(model).__name__)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
