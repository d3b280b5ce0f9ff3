"""One table for every method: what it saves and what it costs, on the same model and questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.core.errors import LabkitError
from labkit.core.scheme import QuantScheme
from labkit.data.corpora import BUNDLED, load_corpus
from labkit.data.tasks import TASKS
from labkit.evaluate.perplexity import perplexity
from labkit.evaluate.size import MEGABYTE, model_size, parameter_count
from labkit.evaluate.tasks import task_accuracy
from labkit.models.apply import quantize_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUP_SIZE = 64


@dataclass(frozen=True)
class Entry:
    """A row to measure: a method and the scheme it is given; neither for the FP32 row."""

    label: str
    method: str | None = None
    scheme: QuantScheme | None = None


@dataclass(frozen=True)
class Effort:
    """How much is measured: tokens of held-out text a domain, context, questions a task."""

    tokens: int = 4096
    context: int = 256
    questions: int = 64


THOROUGH = Effort(tokens=32768, questions=500)


@dataclass(frozen=True)
class ScoreRow:
    """One measured row. Perplexity and accuracy by name; `megabytes` of the whole model."""

    method: str
    bits_per_weight: float
    megabytes: float
    perplexity: dict[str, float]
    tasks: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        return {
            "method": self.method,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "megabytes": round(self.megabytes, 4),
            "perplexity": {name: round(value, 4) for name, value in self.perplexity.items()},
            "tasks": {name: round(value, 4) for name, value in self.tasks.items()},
        }


def _rtn(bits: int, granularity: str, symmetric: bool = True, size: int = GROUP_SIZE) -> Entry:
    group = size if granularity == "group" else None
    scheme = QuantScheme(bits, symmetric, granularity, group)  # type: ignore[arg-type]
    return Entry(f"RTN {scheme}", "rtn", scheme)


def entries(everything: bool = False) -> list[Entry]:
    """FP32 first, then round-to-nearest at 8, 4, 3 and 2 bits per tensor, channel and group.

    `everything` adds asymmetric grids and more group sizes.
    """
    rows = [Entry("FP32")]
    for bits in (8, 4, 3, 2):
        rows += [_rtn(bits, granularity) for granularity in ("tensor", "channel", "group")]
        if everything:
            rows += [_rtn(bits, granularity, False) for granularity in ("channel", "group")]
            rows += [_rtn(bits, "group", size=size) for size in (32, 128)]
    return rows


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entry: Entry,
    effort: Effort,
) -> ScoreRow:
    """Quantize as `entry` says and measure. Raises what the method raises."""
    reports = []
    if entry.method is not None and entry.scheme is not None:
        model, reports = quantize_model(model, entry.scheme, entry.method)
        size = model_size(model, reports)
        bits, megabytes = size.bits_per_weight, size.megabytes
    else:
        bits, megabytes = 32.0, parameter_count(model) * 4 / MEGABYTE
    losses = {
        name: perplexity(
            model,
            tokenizer,
            load_corpus(name, "heldout").text,
            effort.context,
            max_tokens=effort.tokens,
        ).value
        for name in BUNDLED
    }
    tasks = {
        name: task_accuracy(model, tokenizer, name, effort.questions).accuracy for name in TASKS
    }
    return ScoreRow(entry.label, bits, megabytes, losses, tasks)


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
