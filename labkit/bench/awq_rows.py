"""AWQ on the bundled model, beside AutoAWQ: the same tokens and grid, clip search included."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from labkit.bench.awq_record import SCHEME, auto_awq
from labkit.bench.recorded import GROUP, LENGTH, with_weights
from labkit.bench.rows import BenchRow, Effort, alternate
from labkit.data.calibration import calibration_set
from labkit.models import bundled_folder, load
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods.awq import Awq


def rows(effort: Effort) -> Iterator[BenchRow]:
    """One row: the whole model on 32 sequences (quick: its first block on 2).

    Each side is timed once however many rounds are asked for: theirs takes minutes.

    Raises:
        PeerMissingError: AutoAWQ's environment is not there.
    """
    model, tokenizer = load(str(bundled_folder()))
    model = model.cpu()
    blocks, sequences = (1, 2) if effort.quick else (len(model.model.layers), 32)
    model.model.layers = model.model.layers[:blocks]
    ids = calibration_set(tokenizer, "stdlib-code", sequences, LENGTH)
    unseen = calibration_set(tokenizer, "stdlib-prose", 4, LENGTH)
    kept: dict[str, nn.Module] = {}

    def ours() -> None:
        kept["ours"] = quantize_blockwise(model, Awq(SCHEME), ids).model

    def theirs() -> float:
        found, results = auto_awq(ids, blocks, threads=effort.threads)
        kept["theirs"] = with_weights(model, found)
        return results["seconds"]

    seconds, peer_seconds = alternate(ours, theirs, rounds=1)
    reference = _logits(model, unseen)
    error, peer_error = (
        float((_logits(kept[side], unseen) - reference).norm() / reference.norm())
        for side in ("ours", "theirs")
    )
    whole = "bundled model" if not effort.quick else "first block of the bundled model"
    yield BenchRow(
        what=f"AWQ, {whole}, {sequences} × {LENGTH} tokens, int4 group {GROUP}",
        peer="AutoAWQ 0.2.9",
        seconds=seconds,
        peer_seconds=peer_seconds,
        error=error,
        peer_error=peer_error,
        rounds=1,
        note="error of the logits on unseen prose; AutoAWQ's aliased weights on a CPU are mended",
    )


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits
