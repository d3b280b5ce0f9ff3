"""What AutoAWQ makes of the bundled model, kept for learners who do not have it here.

    python -m labkit.bench.awq_record          writes data/results/awq.json

Notebook 06 shows these figures, with the command and the machine that they come from.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from labkit.bench.harness import RESULTS
from labkit.bench.recorded import (
    GROUP,
    LENGTH,
    SEQUENCES,
    THREADS,
    keep,
    perplexities,
    with_weights,
)
from labkit.core.scheme import QuantScheme
from labkit.data.calibration import calibration_set
from labkit.evaluate.provenance import made_with
from labkit.models import bundled_folder, load
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import Awq, Rtn
from labkit.peers.call import call

RECORD = RESULTS / "awq.json"
BITS = 4
SCHEME = QuantScheme(BITS, False, "group", GROUP)


def auto_awq(
    ids: Tensor, blocks: int | None = None, *, clip: bool = True, threads: int = THREADS
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AutoAWQ 0.2.9 on the bundled model (or its first `blocks`): weights and scales, results.

    Raises PeerMissingError where its environment is not there.
    """
    settings: dict[str, Any] = {"model": str(bundled_folder()), "zero_point": True}
    settings |= {"bits": BITS, "group_size": GROUP, "blocks": blocks, "clip": clip}
    return call("awq", "awq_model", {"ids": ids}, settings, threads=threads, timeout=3600)


def main() -> None:
    """Run both on the same tokens, and write the record."""
    model, tokenizer = load(str(bundled_folder()))
    ids = calibration_set(tokenizer, "stdlib-code", SEQUENCES, LENGTH)
    tensors, results = auto_awq(ids)
    torch.set_num_threads(THREADS)
    started = time.process_time()
    ours = quantize_blockwise(model, Awq(SCHEME), ids).model
    seconds = time.process_time() - started
    models = {
        "FP32": model,
        "RTN": quantize_blockwise(model, Rtn(SCHEME)).model,
        "AWQ, labkit": ours,
        "AWQ, AutoAWQ 0.2.9": with_weights(model, tensors),
    }
    record = {
        "command": "python -m labkit.bench.awq_record",
        "made_with": made_with() | {"threads": THREADS},
        "settings": f"{SCHEME}, {SEQUENCES} x {LENGTH} tokens of stdlib-code",
        # Of the processor, not of the clock: what else the machine does hardly changes them.
        "cpu_seconds": {"AWQ, labkit": seconds, "AWQ, AutoAWQ 0.2.9": results["cpu_seconds"]},
        "perplexity": {label: perplexities(one, tokenizer) for label, one in models.items()},
        "searches": results["searches"],
    }
    keep(RECORD, record)


if __name__ == "__main__":
    main()
