"""AWQ, block by block: search the scales of every fold, fold them, clip, round.

A fold is searched with the loss on the module that it belongs to: attention for the norm before q,
k and v, the MLP for the norm before gate and up, and the layer itself for down and o. Where it is
the layer itself the loss is a quadratic form (`awq.output_loss`) and costs nothing. Attention and
MLP are run, in rounds: all candidates on a few hundred tokens, a fifth of them on four times as
many, the last few on thousands. The errors of two candidates are measured on the same tokens, so
their order is known long before their values are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from labkit.core.scheme import QuantScheme
from labkit.models.block import Block
from labkit.models.families import Fold
from labkit.models.folding import fold as fold_scales
from labkit.models.methods.awq_inputs import BlockInputs
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.models.walking import weight_matrix
from labkit.quantize import awq, rtn
from labkit.quantize.awq import ScaleSearch
from labkit.quantize.awq_scales import FORMS, STEPS, Candidate, Form, ScaleSpace, salience
from labkit.quantize.clipping import clip as clip_weight
from labkit.quantize.clipping import rounded, search_clip

# The product q · k multiplies their errors: a bound chosen for one alone is a poor one.
_NOT_CLIPPED = ("q_proj", "k_proj", "qkv", "query", "key", "c_attn")
_FINALISTS = 2


@dataclass(frozen=True)
class Awq(Settings):
    """`labkit.quantize.awq` on every fold and every linear of a block.

    Args:
        scheme: the grid; AWQ's own is asymmetric in groups of 128.
        clip: search clip bounds, for all linears but q and k.
        steps: exponents tried of each form.
        forms: "plain" (activations alone), "duo" (with weights, AutoAWQ's), or both.
        distances: how far from the best, in one exponent, neighbours are tried in turn.
        first_tokens: tokens on which all candidates of attention and MLP are compared; their
            best fifth is on four times as many.
        most_tokens: tokens on which the last few are compared; fewer when calibration has fewer.
    """

    scheme: QuantScheme
    clip: bool = True
    steps: int = STEPS
    forms: tuple[Form, ...] = FORMS
    distances: tuple[float, ...] = (0.1, 0.05, 0.025)
    first_tokens: int = 256
    most_tokens: int = 2048

    name: ClassVar[str] = "awq"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "original"
    needs_inputs: ClassVar[bool] = True

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Search on the original weights, fold, then clip and round each linear."""
        inputs = BlockInputs(block, self.most_tokens)
        grams, notes = inputs.grams(), _skipped(block)
        for fold, search in self.search_folds(block, inputs):
            scales = search.best.scales
            apply_fold(block, fold, scales)
            for linear in fold.linears:
                if linear in grams:
                    grams[linear] = awq.scaled_gram(grams[linear], scales)
                    dead = int((inputs.stats(linear).mean_abs() == 0).sum())
                    if dead:
                        notes[linear].append(f"{dead} channels that no input reaches: scale 1")
        return [
            self._quantize(block, linear, grams[linear], inputs.tokens, notes[linear])
            for linear in block.linears
        ]

    def search_folds(self, block: Block, inputs: BlockInputs) -> list[tuple[Fold, ScaleSearch]]:
        """The scales of each fold of `block`, all searched before any is applied."""
        found = []
        for fold in block.folds():
            linears = [name for name in fold.linears if name in block.linears]
            if not linears:
                continue
            with block.blaming(linears[0]):
                found.append((fold, self._search(block, fold, linears, inputs)))
        return found

    def _search(
        self, block: Block, fold: Fold, linears: list[str], inputs: BlockInputs
    ) -> ScaleSearch:
        stats = inputs.stats(linears[0])
        weights = {name: block.weight(name) for name in linears}
        space = ScaleSpace(salience(stats), list(weights.values()), self.scheme)
        field = space.grid(self.steps, self.forms)
        if fold.inspect in weights and len(fold.linears) == 1:
            gram = stats.hessian() / 2
            loss = awq.output_loss(weights[fold.inspect], gram, self.scheme)
            return awq.refine(space, awq.choose(field, loss), loss, self.distances)
        sample = inputs.sample(fold.inspect)

        # Written past `Block.write`, which would check a finite weight hundreds of times.
        live = {name: weight_matrix(block.linears[name]).detach() for name in linears}

        def measure(scales: Tensor, tokens: int) -> float:
            for name, weight in weights.items():
                live[name].copy_(rounded(weight * scales, self.scheme).div_(scales))
            return sample.loss(tokens)

        try:
            return self._rounds(space, measure)
        finally:
            for name, weight in weights.items():
                block.write(name, weight)

    def _rounds(self, space: ScaleSpace, measure: Callable[[Tensor, int], float]) -> ScaleSearch:
        """All candidates on few tokens, the best and their neighbours on more, four on most."""
        few, more, most = (
            partial(measure, tokens=tokens)
            for tokens in (self.first_tokens, 4 * self.first_tokens, self.most_tokens)
        )
        field = space.grid(self.steps, self.forms)
        first = awq.choose(field, few)
        field = _best(field, first, len(field) // 5)
        second = awq.choose(field, more)
        refined = awq.refine(space, second, more, self.distances)
        last = awq.choose([refined.best, *_best(field, second, _FINALISTS)], most)
        return replace(last, history=first.history)

    def _quantize(
        self, block: Block, linear: str, gram: Tensor, tokens: int, notes: list[str]
    ) -> LayerReport:
        weight = block.weight(linear)
        with block.blaming(linear):
            kept = weight
            if self.clip and not any(part in linear for part in _NOT_CLIPPED):
                kept = clip_weight(weight, search_clip(weight, self.scheme, gram), self.scheme)
            quantized = rtn.quantize(kept, self.scheme)
        loss = awq.squared_error(quantized.dequantize() - weight, gram)
        block.replace(linear, quantized)
        if tokens < weight.shape[1]:
            notes = [*notes, f"{tokens} tokens for {weight.shape[1]} columns"]
        return layer_report(
            block.full_name(linear),
            self.name,
            weight,
            quantized,
            tokens=tokens,
            loss=loss,
            note="; ".join(notes),
        )


def _best(field: list[Candidate], found: ScaleSearch, count: int) -> list[Candidate]:
    """The best `count`, and always the one that scales nothing, to compare with."""
    order = sorted(range(len(field)), key=lambda at: found.history[at][2])
    neutral = [at for at, candidate in enumerate(field) if candidate.neutral]
    return [field[at] for at in dict.fromkeys([*order[: max(count, 1)], *neutral])]


def _skipped(block: Block) -> dict[str, list[str]]:
    """For each linear, the reasons why it is not scaled."""
    reasons = block.skipped_folds()
    return {
        name: [f"not scaled: {reason}" for reason in reasons if name in _scaled(reason)]
        for name in block.linears
    }


def _scaled(reason: str) -> list[str]:
    """The linears in "source -> linears: why"."""
    return reason.partition(" -> ")[2].partition(":")[0].split(", ")


def apply_fold(block: Block, fold: Fold, scales: Tensor) -> None:
    """Fold `scales` [in] into the block's weights; its function stays the same."""
    source = block.module.get_submodule(fold.source)
    fold_scales(
        source,
        [block.module.get_submodule(name) for name in fold.linears],
        scales,
        norm_offset=block.family.norm_offset(source),
        rows=fold.rows,
    )
