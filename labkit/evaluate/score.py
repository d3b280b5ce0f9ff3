"""One table for every method: what it saves and what it costs, on the same model and questions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labkit.core.errors import LabkitError
from labkit.core.scheme import QuantScheme
from labkit.data.calibration import calibration_set
from labkit.data.corpora import BUNDLED
from labkit.data.tasks import TASKS
from labkit.evaluate.heldout import heldout_perplexities
from labkit.evaluate.score_row import ScoreRow
from labkit.evaluate.size import Size, gguf_size, model_size
from labkit.evaluate.tasks import task_accuracy
from labkit.models.apply import quantize_model
from labkit.models.blockwise import quantize_blockwise
from labkit.models.gguf_model import through_gguf
from labkit.models.methods.protocol import BlockMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Entry:
    """A row to measure; label alone is the FP32 row.

    Args:
        label: as the table prints it.
        scheme: round-to-nearest of every linear layer to this scheme.
        method: or a method of `labkit.models.methods`, block by block.
        gguf: or a type of GGUF file, such as "Q4_K_M": embedding and head are quantized as well.
        run: what turns the (quantized) model into one that also quantizes activations.
    """

    label: str
    scheme: QuantScheme | None = None
    method: BlockMethod | None = None
    gguf: str | None = None
    run: Callable[[PreTrainedModel], PreTrainedModel] | None = None


@dataclass(frozen=True)
class Effort:
    """How much is measured: tokens of held-out text a domain, context, questions a task; and
    calibrated on: sequences of context tokens, half of them from each domain."""

    tokens: int = 4096
    context: int = 256
    questions: int = 48
    sequences: int = 12


THOROUGH = Effort(tokens=32768, questions=500, sequences=128)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entry: Entry,
    effort: Effort,
) -> ScoreRow:
    """Quantize as `entry` says and measure. Raises what the method raises."""
    model, size = _quantized(model, tokenizer, entry, effort)
    losses = heldout_perplexities(model, tokenizer, BUNDLED, effort.context, effort.tokens)
    tasks = {
        name: task_accuracy(model, tokenizer, name, effort.questions).accuracy for name in TASKS
    }
    return ScoreRow(entry.label, size.bits_per_weight, size.megabytes, losses, tasks)


def _quantized(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, entry: Entry, effort: Effort
) -> tuple[PreTrainedModel, Size]:
    if entry.method is not None:
        ids = calibration(tokenizer, effort) if entry.method.needs_inputs else None
        result = quantize_blockwise(model, entry.method, ids)
        size = model_size(model, result.reports)
        model = result.model
    elif entry.gguf is not None:
        model, conversion = through_gguf(model, entry.gguf)
        size = gguf_size(conversion)
    elif entry.scheme is not None:
        original = model
        model, reports = quantize_model(original, entry.scheme)
        size = model_size(original, reports)
    else:
        size = model_size(model, [], full_bits=32)
    return (model if entry.run is None else entry.run(model)), size


@functools.lru_cache(maxsize=2)
def calibration(tokenizer: PreTrainedTokenizerBase, effort: Effort) -> Tensor:
    """Token ids [sequences, context] for methods that calibrate, half from each domain."""
    half = effort.sequences // len(BUNDLED)
    parts = [calibration_set(tokenizer, name, half, effort.context) for name in BUNDLED]
    return torch.cat(parts)


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[Entry],
    effort: Effort,
) -> Iterator[tuple[Entry, ScoreRow | LabkitError]]:
    """Measure row after row; a row whose method refuses the model yields the error, aloud."""
    for entry in chosen:
        try:
            yield entry, measure(model, tokenizer, entry, effort)
        except LabkitError as error:
            yield entry, error
