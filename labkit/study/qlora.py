"""QLoRA on the bundled model, before and after each step of its life. `labkit study qlora`

The new domain is NumPy's docstrings, which the model has never read. Adapters are trained beside an
NF4 base with double quantization, ours and then bitsandbytes' own, from the same A and on the same
batches. Ours is then merged and rounded again in three ways. Each row is measured on the new
domain, on the two old ones and on the tasks: what is learned, what is forgotten, what the second
rounding takes back.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.scheme import QuantScheme
from labkit.data import load_corpus
from labkit.data.calibration import calibration_set, cut_sequences
from labkit.data.numpy_docs import NAME, load_numpy_docs
from labkit.data.tasks import TASKS
from labkit.evaluate.perplexity import perplexity
from labkit.evaluate.tasks import task_accuracy
from labkit.models.apply import map_weights
from labkit.models.blockwise import quantize_blockwise
from labkit.models.loading import BUNDLED, load
from labkit.models.methods import Gptq
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import gguf, nf4
from labkit.training.qlora import (
    FrozenLinear,
    adapter_parameters,
    add_adapters,
    freeze_base,
    merge,
)
from labkit.training.qlora_batches import document_batches
from labkit.training.qlora_bitsandbytes import bitsandbytes_base
from labkit.training.qlora_files import TENSORS, load_adapters, save_adapters
from labkit.training.trainer import TrainSettings, train

OLD = ("stdlib-prose", "stdlib-code")
INT4 = QuantScheme(4, symmetric=False, granularity="group", group_size=64)
BEFORE, TUNED, MERGED = "NF4 base", "NF4 base and adapters", "merged, in floats"
_nf4 = partial(nf4.quantize, double_quantization=True)


@dataclass(frozen=True)
class Size:
    """How much is trained and measured; `sequences` of GPTQ's calibration text, a domain."""

    rank: int = 16
    alpha: float = 32.0
    steps: int = 60
    warmup: int = 6
    lr: float = 3e-3
    rows: int = 8
    length: int = 256
    heldout_tokens: int = 8192
    questions: int = 100
    sequences: int = 48
    seed: int = 0


QUICK = Size(
    rank=4, alpha=8, steps=3, warmup=1, rows=2, length=64, heldout_tokens=256, questions=4,
    sequences=2,
)  # fmt: skip


def run(quick: bool = False, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """All rows; "quick" trains three steps and measures little.

    Returns:
        "size" (`Size`), "corpus" (of the new domain: split to documents, characters, sha256),
        "rows": label, "bytes" of the linear layers with what they need, "perplexity" by domain,
        "tasks" by name, "kept" (`kept`; None before training); "curves": loss of each step on
        both bases, "curve_gap": the largest relative difference between them; "adapters":
        trained numbers, their share of the model's, and bytes on disk.
    """
    size = QUICK if quick else Size()
    model, tokenizer = load(BUNDLED)
    measure = partial(_measured, tokenizer=tokenizer, size=size, tell=tell)
    rows = [measure("FP32", model, 4 * _weights(model))]
    base = freeze_base(model, _nf4)
    stored = sum(m.quantized.nbytes for m in base.modules() if isinstance(m, FrozenLinear))
    rows.append(measure(BEFORE, base, stored))

    documents = load_numpy_docs("train").documents
    batches = document_batches(tokenizer, documents, size.rows, size.length, size.seed)
    tuned, curve = _trained(base, batches, size, tell)
    theirs = bitsandbytes_base(model, double_quantization=True)
    theirs, other = _trained(theirs, batches, size, tell)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "adapters"
        save_adapters(tuned, folder)
        adapter_bytes = (folder / TENSORS).stat().st_size
        on_floats = load_adapters(copy.deepcopy(model), folder).eval()
    rows.append(measure(TUNED, tuned, stored + adapter_bytes))
    rows.append(measure("bitsandbytes' base and adapters", theirs, stored + adapter_bytes))
    rows.append(measure("adapters on the FP32 model", on_floats, rows[0]["bytes"] + adapter_bytes))
    merged = merge(tuned)
    rows.append(measure(MERGED, merged, rows[0]["bytes"]))
    for label, network, nbytes in _again(merged, tokenizer, size):
        rows.append(measure(label, network, nbytes))
    numbers, total = adapter_parameters(tuned), sum(p.numel() for p in model.parameters())
    return {
        "model": BUNDLED,
        "size": asdict(size),
        "corpus": {split: _facts(split) for split in ("train", "calibration", "heldout")},
        "rows": [row | {"kept": kept(rows, row)} for row in rows],
        "curves": {"labkit": curve, "bitsandbytes": other},
        "curve_gap": max(abs(a - b) / a for a, b in zip(curve, other, strict=True)),
        "adapters": {"numbers": numbers, "share": numbers / total, "bytes": adapter_bytes},
    }


def kept(rows: list[dict[str, Any]], row: dict[str, Any]) -> float | None:
    """The part of the gain on the new domain that this row still has, in nats a token; 1 is all.

    The gain is that of the adapters beside their base; None for the rows before it.
    """
    nats = {r["label"]: math.log(r["perplexity"][NAME]) for r in rows}
    labels = list(nats)
    if labels.index(row["label"]) < labels.index(TUNED):
        return None
    return (nats[BEFORE] - nats[row["label"]]) / (nats[BEFORE] - nats[TUNED])


def _trained(
    base: nn.Module, batches: Callable[[int], Tensor], size: Size, tell: Callable[[str], None]
) -> tuple[nn.Module, list[float]]:
    """The base with adapters that have learned, and the loss of each step."""
    model = add_adapters(base, rank=size.rank, alpha=size.alpha, seed=size.seed)
    history = train(
        model,
        batches,
        TrainSettings(steps=size.steps, warmup=size.warmup, lr=size.lr),
        progress=lambda word, done, of: tell(f"{done}/{of} {word}") if done % 20 == 0 else None,
    )
    return model, [row["loss"] for row in history]


def _again(merged: nn.Module, tokenizer, size: Size) -> Iterator[tuple[str, nn.Module, int]]:
    """The merged model rounded again: label, model, bytes of its linear layers."""
    stored: list[int] = []

    def nf4_weight(name: str, weight: Tensor) -> Tensor:
        codes = _nf4(weight)
        stored.append(codes.nbytes)
        return codes.dequantize()

    def q4_k_weight(name: str, weight: Tensor) -> Tensor:
        blocks = gguf.quantize(weight, "Q4_K")
        stored.append(blocks.nbytes)
        return torch.from_numpy(gguf.dequantize(blocks, "Q4_K"))

    for label, change in (("merged, NF4", nf4_weight), ("merged, Q4_K", q4_k_weight)):
        stored.clear()
        again = map_weights(merged, change)
        yield label, again, sum(stored)
    ids = _calibration(tokenizer, size)
    result = quantize_blockwise(merged, Gptq(INT4, act_order=True), ids)
    yield "merged, GPTQ int4", result.model, sum(q.nbytes for q in result.layers.values())


def _calibration(tokenizer, size: Size) -> Tensor:
    """Token ids of all three domains alike: int64 [3 · sequences, length]."""
    new = load_numpy_docs("calibration").documents
    parts = [cut_sequences(tokenizer, new, size.sequences, size.length, where=NAME)]
    parts += [calibration_set(tokenizer, name, size.sequences, size.length) for name in OLD]
    return torch.cat(parts)


def _measured(
    label: str,
    model: nn.Module,
    nbytes: int,
    *,
    tokenizer,
    size: Size,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    texts = {NAME: load_numpy_docs("heldout").text}
    texts |= {name: load_corpus(name, "heldout").text for name in OLD}
    row = {
        "label": label,
        "bytes": nbytes,
        "perplexity": {
            name: perplexity(
                model, tokenizer, text, size.length, max_tokens=size.heldout_tokens
            ).value
            for name, text in texts.items()
        },
        "tasks": {
            name: task_accuracy(model, tokenizer, name, size.questions).accuracy for name in TASKS
        },
    }
    tell(f"{label}: {row['perplexity']}, {row['tasks']}")
    return row


def _weights(model: nn.Module) -> int:
    return sum(weight_matrix(layer).numel() for layer in linear_layers(model).values())


def _facts(split: str) -> dict[str, Any]:
    corpus = load_numpy_docs(split)
    return {
        "documents": len(corpus.documents),
        "characters": len(corpus.text),
        "sha256": corpus.sha256,
    }


def readme_block(result: dict[str, Any]) -> str:
    """The table of README: size, perplexity on the new and the old domains, tasks, gain kept."""
    size, adapters = result["size"], result["adapters"]
    domains = (NAME, *OLD)
    heads = ("model", "MB of linear layers", *domains, *TASKS, "gain kept")
    lines = [
        f"{size['steps']} steps of {size['rows']} x {size['length']} tokens, rank {size['rank']}: "
        f"{adapters['numbers']} trained numbers, {adapters['share']:.1%} of the model's. The loss "
        f"beside bitsandbytes' base differs by at most {result['curve_gap']:.1e} of its value.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    for row in result["rows"]:
        cells = [row["label"], f"{row['bytes'] / 1e6:.2f}"]
        cells += [f"{row['perplexity'][name]:.2f}" for name in domains]
        cells += [f"{row['tasks'][name]:.1%}" for name in TASKS]
        cells.append("" if row["kept"] is None else f"{row['kept']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
