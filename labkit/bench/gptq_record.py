"""What AutoGPTQ makes of the bundled model, kept for learners who do not have it here.

    python -m labkit.bench.gptq_record          writes data/results/gptq.json

Notebook 05 shows these figures, with the command and the machine that they come from.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from torch import Tensor, nn

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
from labkit.models.methods import Gptq, Rtn
from labkit.peers.call import call

RECORD = RESULTS / "gptq.json"
DAMP = 0.01


def scheme(bits: int) -> QuantScheme:
    """Groups of 128 on the whole symmetric range, as AutoGPTQ has them."""
    return QuantScheme(bits, True, "group", GROUP, narrow_range=False)


def auto_gptq(
    ids: Tensor, bits: int, *, act_order: bool = False, threads: int = THREADS
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AutoGPTQ 0.7.1 on the bundled model: rounded weights by name, and seconds.

    Raises PeerMissingError where its environment is not there.
    """
    settings = {"model": str(bundled_folder()), "bits": bits, "group_size": GROUP}
    settings |= {"symmetric": True, "damp": DAMP, "act_order": act_order}
    tensors = {"ids": ids}
    return call("auto_gptq", "auto_gptq_model", tensors, settings, threads=threads, timeout=3600)


def main() -> None:
    """Run both on the same tokens, and write the record."""
    model, tokenizer = load(str(bundled_folder()))
    ids = calibration_set(tokenizer, "stdlib-code", SEQUENCES, LENGTH)
    measured: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}

    def measure(label: str, network: nn.Module | None) -> None:
        assert network is not None
        measured[label] = perplexities(network, tokenizer)
        print(label, measured[label], file=sys.stderr)

    measure("FP32", model)
    for bits in (4, 3, 2):
        measure(f"int{bits}, RTN", quantize_blockwise(model, Rtn(scheme(bits))).model)
        for order, act_order in (("", False), (", act-order", True)):
            label = f"int{bits}{order}, labkit"
            started = time.perf_counter()
            ours = quantize_blockwise(model, Gptq(scheme(bits), act_order=act_order), ids).model
            seconds[label] = time.perf_counter() - started
            measure(label, ours)
            label = f"int{bits}{order}, AutoGPTQ 0.7.1"
            weights, results = auto_gptq(ids, bits, act_order=act_order)
            seconds[label] = results["seconds"]
            measure(label, with_weights(model, weights))
    record = {
        "command": "python -m labkit.bench.gptq_record",
        "made_with": made_with() | {"threads": THREADS},
        "settings": f"symmetric, group {GROUP}, {SEQUENCES} x {LENGTH} tokens of stdlib-code",
        "seconds": seconds,
        "perplexity": measured,
    }
    keep(RECORD, record)


if __name__ == "__main__":
    main()
