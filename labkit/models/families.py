"""What labkit knows of each architecture: the order of a block's linears, and what may be folded.

Names are relative to the block ("self_attn.q_proj"). The tables are in `families_table.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from labkit.core.errors import ModelError
from labkit.models.walking import is_linear, weight_matrix


@dataclass(frozen=True)
class Fold:
    """A diagonal matrix that can be moved from some linears' inputs into what feeds them.

    Dividing the outputs of `source` by s and multiplying the columns of `linears` by s leaves the
    block's function unchanged.

    Args:
        source: the norm or the linear that feeds `linears`.
        linears: all the linears that read its output.
        inspect: the module whose output error is AWQ's loss; "" is the block itself.
        kind: divide the weight (and bias) of a "norm", or the rows (and bias) of a "linear".
        rows: the rows [start, end) of a fused source that feed `linears`; None for all of them.
    """

    source: str
    linears: tuple[str, ...]
    inspect: str
    kind: Literal["norm", "linear"]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class FoldRule:
    """A Fold that holds if the block's shapes and activation allow it.

    `part`: which rows of `source` feed the linears: "all", the "value" rows of a fused q, k, v in
    this order, or the "upper" half of a fused gate, up.
    `through`: attribute of the block with the activation between source and linears. Only ReLU
    lets a positive factor pass.
    """

    source: str
    linears: tuple[str, ...]
    inspect: str
    kind: Literal["norm", "linear"]
    part: Literal["all", "value", "upper"] = "all"
    through: str = ""


@dataclass(frozen=True)
class Family:
    """What labkit knows of one architecture.

    Args:
        name: the `model_type` of its config.
        order: the linears in the order in which they run. Those of one group read one tensor.
        rules: the folds that its block allows where shapes fit.
        never: folds that it never allows, each with the reason.
        offset: 1.0 where norms multiply by (1 + weight), as Gemma's do; else 0.0.
    """

    name: str
    order: tuple[tuple[str, ...], ...]
    rules: tuple[FoldRule, ...]
    never: tuple[str, ...] = ()
    offset: float = 0.0

    def groups(self, block: nn.Module) -> list[list[str]]:
        """The block's linears in true-sequential order; those of a group read one tensor.

        Raises ModelError naming a matrix of the block that is not among them: labkit would
        neither quantize nor understand it.
        """
        known = {name for group in self.order for name in group}
        modules = dict(block.named_modules())
        missing = sorted(name for name in known if name not in modules)
        strange = sorted(set(_matrices(block)) - known)
        if missing or strange:
            parts = [f"lacks {', '.join(missing)}"] if missing else []
            parts += [f"has {', '.join(strange)}, which labkit does not know"] if strange else []
            raise ModelError(
                f"a block of family {self.name!r} {' and '.join(parts)}",
                where=type(block).__name__,
                remedy="Merge adapters, or give a plain model of this family.",
            )
        return [list(group) for group in self.order]

    def folds(self, block: nn.Module) -> list[Fold]:
        """The folds that this block allows, in the order in which they run."""
        return [fold for fold, _ in self._decide(block) if fold is not None]

    def skipped_folds(self, block: nn.Module) -> list[str]:
        """The folds that this block does not allow: "source -> linears: the reason"."""
        return [*self.never, *(reason for fold, reason in self._decide(block) if fold is None)]

    def norm_offset(self, module: nn.Module) -> float:
        """What a norm adds to its stored weight before it multiplies: 1.0 for Gemma's."""
        return self.offset if "RMSNorm" in type(module).__name__ else 0.0

    def _decide(self, block: nn.Module) -> Iterator[tuple[Fold | None, str]]:
        for rule in self.rules:
            decide = _decide_norm if rule.kind == "norm" else _decide_linear
            made = decide(block, rule)
            if isinstance(made, Fold):
                yield made, ""
            else:
                yield None, f"{rule.source} -> {', '.join(rule.linears)}: {made}"


def _decide_norm(block: nn.Module, rule: FoldRule) -> Fold | str:
    if getattr(block, "do_layer_norm_before", True) is False:
        return "the norm stands behind the sum, and feeds the residual stream too"
    if getattr(block.get_submodule(rule.source), "weight", None) is None:
        return "the norm has no weight"
    return Fold(rule.source, rule.linears, rule.inspect, "norm")


def _decide_linear(block: nn.Module, rule: FoldRule) -> Fold | str:
    outputs = weight_matrix(block.get_submodule(rule.source)).shape[0]
    inputs = weight_matrix(block.get_submodule(rule.linears[0])).shape[1]
    activation = getattr(block, rule.through) if rule.through else None
    if rule.through and type(activation).__name__ not in {"ReLU", "relu"}:
        return f"a factor does not pass through {type(activation).__name__}"
    # q has as many rows as the output projection has columns; k and v share what is left.
    rows = {"all": outputs, "value": (outputs - inputs) // 2, "upper": outputs // 2}[rule.part]
    if rows != inputs:
        return f"{rows} outputs feed {inputs} inputs (grouped-query attention)"
    span = None if rule.part == "all" else (outputs - rows, outputs)
    return Fold(rule.source, rule.linears, rule.inspect, "linear", span)


def _matrices(block: nn.Module) -> Iterator[str]:
    """Names of the linears, and of every other parameter with two axes or more."""
    for name, module in block.named_modules():
        if is_linear(module):
            yield name
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                yield f"{name}.{own}" if name else own


def family(model: nn.Module) -> Family:
    """What labkit knows of the model's architecture, by `model.config.model_type`.

    Raises ModelError for an architecture that it does not know, naming those it does.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return family_named(kind, type(model).__name__)


def family_named(kind: object, where: str) -> Family:
    """What labkit knows of the architecture with this `model_type`; `where` it was found.

    Raises ModelError as `family` does.
    """
    from labkit.models.families_table import FAMILIES

    if kind not in FAMILIES:
        raise ModelError(
            f"architecture {kind!r} is not one that labkit walks",
            where=where,
            remedy=f"Supported: {', '.join(FAMILIES)}.",
        )
    return FAMILIES[str(kind)]
