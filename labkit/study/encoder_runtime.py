"""The study's end: the classifier in ONNX Runtime, whether it answers alike, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from labkit.core import metrics
from labkit.evaluate.classification import damage, labels_of, logits_of, score_logits
from labkit.models.classifier_onnx import (
    export_onnx,
    feed,
    quantize_weights,
    quantize_whole,
    run_onnx,
    session,
)
from labkit.models.text_classifier import TextBatch

if TYPE_CHECKING:
    from labkit.study.encoder import Lab

BATCHES = (1, 32)
LENGTH = 32


def measure(lab: Lab, tell: Callable[[str], None], rounds: int = 15) -> dict[str, Any]:
    """PyTorch, ONNX float32, INT8 MatMul, INT8 everywhere: answers, bytes, times."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        plain = export_onnx(lab.model, folder / "float32.onnx")
        files = {
            "ONNX float32": plain,
            "ONNX INT8, MatMul alone": quantize_weights(plain, folder / "matmul.onnx"),
            "ONNX INT8, every operator": quantize_whole(
                plain, folder / "whole.onnx", lab.batches[:: max(1, len(lab.batches) // 8)]
            ),
        }
        exact, labels = logits_of(lab.model, lab.heldout), labels_of(lab.heldout)
        runners = {"PyTorch float32": lab.model}
        rows = []
        for what, path in files.items():
            running = session(path, torch.get_num_threads())
            logits = run_onnx(running, lab.heldout)
            runners[what] = lambda batch, running=running: running.run(["logits"], feed(batch))
            rows.append(
                {
                    "what": what,
                    "bytes": path.stat().st_size,
                    "max_logit_error": metrics.max_abs_error(exact, logits),
                    **asdict(score_logits(logits, labels)),
                    **asdict(damage(exact, logits, labels)),
                }
            )
            tell(f"{what}: F1 {rows[-1]['macro_f1']:.3f}, KL {rows[-1]['kl']:.2g}")
        words = lab.model.encoder.config.vocab_size
        return {"answers": rows, "times": _times(runners, words, rounds, tell)}


@torch.inference_mode()
def _times(runners: dict[str, Any], words: int, rounds: int, tell: Callable[[str], None]):
    """Medians over rounds in which all take turns, so that a slow moment hits all alike."""
    rows = []
    for size in BATCHES:
        ids = torch.randint(1, words, (size, LENGTH), generator=torch.Generator().manual_seed(0))
        batch = TextBatch(ids, torch.ones_like(ids))
        seconds: dict[str, list[float]] = {what: [] for what in runners}
        for _ in range(rounds + 1):
            for what, runner in runners.items():
                start = time.perf_counter()
                runner(batch)
                seconds[what].append(time.perf_counter() - start)
        for what, found in seconds.items():
            median = statistics.median(found[1:])
            rows.append(
                {
                    "what": what,
                    "batch": size,
                    "tokens": LENGTH,
                    "seconds": median,
                    "texts_per_second": size / median,
                }
            )
            tell(f"{what}, batch {size}: {median * 1e3:.1f} ms")
    return rows
