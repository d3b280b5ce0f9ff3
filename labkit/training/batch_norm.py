"""Fold a batch norm into the layer in front of it, for inference and while training.

In evaluation a batch norm is one factor and one offset for each output channel, made of its running
statistics:

    factor = weight / sqrt(running_var + eps)
    BN(W x + b) = (factor · W) x + (b - running_mean) · factor + bias

so an integer layer never sees it. What is rounded at run time is factor · W, not W: training must
round that product too, or it trains another model than the one it exports. `QatConvBn2d` does:

    y = conv(x, round(factor · W)) / factor,   then the norm itself, on the batch's own statistics

The factor is that of the *running* variance, which hardly moves from batch to batch: the grid
stands still.
Sources: Jacob et al. 2018, section 3.2; Krishnamoorthi 2018, "Quantizing deep convolutional
networks for efficient inference", section 3.2.3; torch.ao.nn.intrinsic.qat.ConvBn2d.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError, ModelError, ShapeError
from labkit.core.finite import require_finite
from labkit.training.layers import QatConv2d, convolution_like, require_convolvable

Folds = TypeVar("Folds", nn.Conv2d, nn.Linear)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d

_LEAST = 1e-6  # of |factor| while training: the weights of a dead channel must survive the product


@torch.no_grad()
def fold_batch_norm(layer: Folds, norm: BatchNorm) -> Folds:
    """A new layer that gives what `layer` and then `norm` (in evaluation) give.

    Args:
        layer: `nn.Conv2d` or `nn.Linear`, with or without bias.
        norm: it must read the outputs of `layer`, and nothing else may.

    Raises:
        CalibrationError: the norm has no running statistics: it keeps none, or saw no batch.
        ShapeError: as many channels as the layer does not have.
        NonFiniteError: statistics that are not finite.
        ModelError: a layer of another kind.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise ModelError(f"a batch norm behind {type(layer).__name__}", where="batch norm")
    require_statistics(norm)
    factor, offset = factor_and_offset(norm)
    if len(factor) != layer.weight.shape[0]:
        raise ShapeError(
            f"{len(factor)} channels in the norm, {layer.weight.shape[0]} in the layer",
            where="batch norm",
            remedy="Fold a norm into the layer whose outputs it reads.",
        )
    if isinstance(layer, nn.Linear):
        folded = nn.Linear(layer.in_features, layer.out_features, device="meta")
    else:
        folded = convolution_like(layer, nn.Conv2d, bias=True)
    bias = torch.zeros_like(offset) if layer.bias is None else layer.bias
    folded.weight = nn.Parameter(layer.weight * _by_row(factor, layer.weight))
    folded.bias = nn.Parameter(bias * factor + offset)
    return folded.train(layer.training)


def require_statistics(norm: BatchNorm) -> None:
    """Return if the norm knows the mean and variance of what it reads.

    Raises:
        CalibrationError, NonFiniteError: as `fold_batch_norm`.
    """
    counted = norm.num_batches_tracked
    if norm.running_mean is None or norm.running_var is None:
        what, remedy = "it keeps no running statistics", "Build it with track_running_stats=True."
    elif counted is not None and int(counted) == 0 and _untouched(norm):
        what = "its statistics are those of no batch"
        remedy = "Train the model, or load one that was trained; then fold."
    else:
        require_finite(norm.running_mean, "running mean of the batch norm")
        require_finite(norm.running_var, "running variance of the batch norm")
        return
    raise CalibrationError(what, where=f"batch norm of {norm.num_features} channels", remedy=remedy)


def _untouched(norm: BatchNorm) -> bool:
    """As built; a checkpoint of other libraries may hold statistics and no count."""
    return bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())


def factor_and_offset(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and offset (bias - running_mean · factor), float [channels]."""
    gamma = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
    beta = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_mean)
    factor = gamma * torch.rsqrt(norm.running_var + norm.eps)
    return factor, beta - norm.running_mean * factor


def _by_row(values: Tensor, weight: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (weight.ndim - 1))


class QatConvBn2d(nn.Conv2d):
    """A convolution and the batch norm behind it, trained as the one layer that they become.

    In evaluation its output is that of `folded()`: the folded, rounded weights and a float bias.
    """

    norm: nn.BatchNorm2d
    weight_quant: nn.Module
    input_quant: nn.Module | None
    statistics_frozen: bool = False

    @classmethod
    def from_float(
        cls,
        layer: nn.Conv2d,
        norm: nn.BatchNorm2d,
        weight_quant: nn.Module,
        input_quant: nn.Module | None = None,
    ) -> QatConvBn2d:
        """The two layers with the same parameters and statistics.

        Raises:
            CalibrationError, ShapeError, NonFiniteError: as `fold_batch_norm`.
            SchemeError: scales that cannot leave the sum, as `QatConv2d`.
        """
        fold_batch_norm(layer, norm)  # refuses what could not be exported later
        require_convolvable(weight_quant, input_quant)
        new = convolution_like(layer, cls)
        new.weight, new.bias, new.norm = layer.weight, layer.bias, norm
        new.weight_quant, new.input_quant = weight_quant, input_quant
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, height, width] to [batch, out, ...]."""
        if self.input_quant is not None:
            x = self.input_quant(x)
        factor, offset = factor_and_offset(self.norm)
        if self.statistics_frozen or not self.training:
            weight = self.weight_quant(self.weight * _by_row(factor, self.weight))
            bias = offset if self.bias is None else offset + self.bias * factor
            return self._conv_forward(x, weight, bias)
        sign = torch.where(factor < 0, -1.0, 1.0)
        factor = torch.where(factor.abs() < _LEAST, sign * _LEAST, factor)
        weight = self.weight_quant(self.weight * _by_row(factor, self.weight))
        y = self._conv_forward(x, weight, None) / factor.reshape(1, -1, 1, 1)
        return self.norm(y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1))

    def freeze_statistics(self) -> None:
        """Train on with the running statistics, as the exported layer will have them.

        Late in training: the batch's own statistics are noise that inference will not have.
        """
        self.statistics_frozen = True

    def folded(self) -> QatConv2d:
        """The one layer that it stands for; `convert` exports that."""
        layer = fold_batch_norm(self, self.norm)
        return QatConv2d.from_float(layer, self.weight_quant, self.input_quant)
