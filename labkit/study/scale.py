"""Does quantizing a 7B model fit into a small machine, and how long does it take?

`labkit study scale`: a checkpoint of random weights with the real shapes of Llama-2-7B is written,
its first blocks are quantized by GPTQ, all of it is converted to Q4_K_M, and everything is deleted.
Each of them runs in a process of its own, whose memory and time are its alone.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit.core.errors import ModelError
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape
from labkit.evaluate.resident import resident_bytes
from labkit.study.scale_checkpoint import require_room, write_random
from labkit.study.scale_cost import gptq_memory, gptq_operations, ratio
from labkit.study.scale_table import readme_block

__all__ = ["readme_block", "run"]

LARGER = "llama-2-70b"
_QUICK = ModelShape("quick", 4, 512, 1536, 4, 4, 128, 2000)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """Random token ids: what they say changes no time."""

    sequences: int = 128
    length: int = 256

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


def run(
    quick: bool = False,
    tell: Tell = print,
    *,
    blocks: int = 3,
    layers: int | None = None,
    sequences: int = 128,
    work: Path | None = None,
) -> dict[str, Any]:
    """Write, measure, delete.

    Args:
        blocks: how many GPTQ quantizes.
        layers: blocks that are written, if not all; no more than these are converted to GGUF.
        sequences: of 256 tokens, for GPTQ.
        work: a folder on the disk that is to be used; default the current one.

    Raises:
        StorageError: too little room.
        ModelError: fewer blocks on the disk than are to be measured; a measurement that failed; a
            system that does not say how much memory a process holds.
    """
    whole = _QUICK if quick else MODEL_SHAPES["llama-2-7b"]
    shape = whole if layers is None else replace(whole, layers=layers)
    calibration = Calibration(16, 64) if quick else Calibration(sequences)
    if not 1 <= blocks <= shape.layers:
        raise ModelError(
            f"{blocks} blocks are to be measured of {shape.layers}",
            where="labkit study scale",
            remedy="--blocks is at least 1, and no more than --layers.",
        )
    resident_bytes()  # on a system that does not say it, there is nothing to measure
    with _own_folder(work or Path()) as folder:
        require_room(folder, _bytes_needed(shape, blocks, calibration))
        half = _half(whole)
        narrow = _gptq(half, half.layers, calibration, folder / "half", tell)
        shutil.rmtree(folder / "half")
        model = folder / "model"
        nbytes = write_random(model, shape, tell)
        tell(f"{nbytes / 1e9:.2f} GB written")
        gptq = _gptq(shape, blocks, calibration, model, tell)
        gguf = _measured(["gguf", str(model), str(folder / "model.gguf")], tell)
    figures = {
        "model": {**asdict(shape), "parameters": shape.parameters, "bytes": nbytes},
        "whole_layers": whole.layers,
        "calibration": asdict(calibration),
        "gptq": gptq,
        "gguf": gguf,
        "half_width": {"hidden": half.hidden, "ffn": half.ffn, **narrow},
    }
    return figures | {"extrapolated": extrapolated(figures, whole, MODEL_SHAPES[LARGER])}


def extrapolated(figures: dict[str, Any], whole: ModelShape, larger: ModelShape) -> dict[str, Any]:
    """Seconds for the whole model and for a larger one, and the check of the way it is done."""
    calibration = Calibration(**figures["calibration"])
    counts = (calibration.tokens, calibration.length)
    block = _mean(figures["gptq"]["blocks"])
    start = figures["gptq"]["start"]["seconds"]
    times = ratio(larger, whole, *counts)
    half = _mean(figures["half_width"]["blocks"])
    per_weight = sum(p["seconds"] for p in figures["gguf"]["parts"]) / figures["gguf"]["weights"]
    return {
        "operations_of_a_block": asdict(gptq_operations(whole, *counts)),
        "memory_terms": gptq_memory(whole),
        "gptq_block_seconds": block,
        "gptq_seconds": start + whole.layers * block,
        "predicted_from_half_width": half * ratio(whole, _half(whole), *counts),
        "gguf_seconds": per_weight * whole.parameters,
        "larger": {
            "model": larger.name,
            "operations_ratio": times,
            "memory_terms": gptq_memory(larger),
            "gptq_block_seconds": block * times,
            "gptq_seconds": larger.layers * (block * times) + start * larger.hidden / whole.hidden,
            "gguf_seconds": per_weight * larger.parameters,
        },
    }


def _mean(parts: list[dict[str, float]]) -> float:
    """Seconds a block, but for the first, in which a process still loads machine code."""
    used = parts[1:] or parts
    return sum(part["seconds"] for part in used) / len(used)


def _half(shape: ModelShape) -> ModelShape:
    """Half as wide, two blocks, hardly any vocabulary."""
    halves = {name: getattr(shape, name) // 2 for name in ("hidden", "ffn", "heads", "kv_heads")}
    return replace(shape, name="half", layers=2, vocab=1000, **halves)


def _gptq(
    shape: ModelShape, blocks: int, calibration: Calibration, model: Path, tell: Tell
) -> dict[str, Any]:
    """Quantize `blocks` blocks of the checkpoint, which is written if it is not there."""
    if not model.exists():
        write_random(model, shape, lambda text: None)
    tell(f"GPTQ, width {shape.hidden}, {calibration.sequences} x {calibration.length} tokens")
    numbers = (blocks, calibration.sequences, calibration.length)
    with tempfile.TemporaryDirectory(dir=model.parent) as work:
        return _measured(["gptq", str(model), f"{work}/run", *map(str, numbers)], tell)


def _bytes_needed(shape: ModelShape, blocks: int, calibration: Calibration) -> int:
    """On the disk at once: the checkpoint, and GPTQ's blocks or the GGUF file."""
    states = 2 * 4 * calibration.tokens * shape.hidden
    finished = (blocks + 1) * shape.linear_parameters // shape.layers * 1.1 + states
    file = 5 / 8 * shape.parameters  # Q4_K_M has less than 5 bits a weight
    return int(2 * shape.parameters + max(finished, file))


def _measured(words: list[str], tell: Tell) -> dict[str, Any]:
    """What `scale_measure` finds, in a process of its own."""
    command = [sys.executable, "-m", "labkit.study.scale_measure", *words]
    found: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            for line in child.stdout or ():
                said = json.loads(line)
                if "say" in said:
                    tell(said["say"])
                found = said.get("result", found)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        reason = errors.read().strip()[-2000:]
    if code != 0 or found is None:
        raise ModelError(f"the measurement ended with {code}: {reason}", where=" ".join(words[:2]))
    return found


@contextmanager
def _own_folder(place: Path) -> Iterator[Path]:
    """A folder in `place` that is gone afterwards, whatever ends the run short of SIGKILL."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if main else None
    try:
        with tempfile.TemporaryDirectory(prefix="labkit-scale-", dir=place) as folder:
            yield Path(folder)
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
