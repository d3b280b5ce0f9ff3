"""HQQ beside the package: nearly all codes the same, and never a larger error."""

from __future__ import annotations

import pytest
import torch

from labkit.peers import call
from labkit.quantize import hqq

pytestmark = pytest.mark.peers


def weights():
    g = torch.Generator().manual_seed(0)
    heavy = torch.randn(64, 256, generator=g)
    return {
        "gauss": torch.randn(64, 256, generator=g) * 0.04,
        "heavy": heavy.sign() * heavy.abs().exp() * 0.02,
        "offset": torch.randn(64, 256, generator=g) * 0.02 + 0.1,
        "half zero": torch.randn(64, 256, generator=g) * (torch.arange(256) > 100),
        "large": torch.randn(64, 256, generator=g) * 4,
        "narrow": torch.randn(64, 256, generator=g) * 1e-5,
    }


def test_error_is_at_most_the_packages(need_peer):
    need_peer("hqq")
    cases = [
        {"name": f"{name} {bits}", "weight": weight, "bits": bits, "group_size": 64}
        for name, weight in weights().items()
        for bits in (8, 4, 3, 2)
    ]
    tensors = {f"{case['name']}.weight": case.pop("weight") for case in cases}
    theirs, _ = call("hqq", "hqq_layer", tensors, {"cases": cases})
    for case in cases:
        name, weight = case["name"], tensors[f"{case['name']}.weight"]
        codes, scale, zero = (theirs[f"{name}.{part}"] for part in ("codes", "scale", "zero"))
        peer_error = (((codes - zero) * scale).reshape(weight.shape) - weight).abs().mean()
        # With κ, which the package does not apply, the turns differ where weights are large.
        for kappa, margin in ((1.0, 1e-6), (1.01, 3e-3)):
            ours = hqq.quantize(weight, case["bits"], 64, kappa=kappa, scale_dtype=torch.float32)
            error = (ours.dequantize() - weight).abs().mean()
            assert float(error) <= float(peer_error) * (1 + margin), name
        if not name.startswith("narrow"):  # there the package has a single level
            same = ours.codes.float().reshape(codes.shape) == codes
            assert float(same.float().mean()) > 0.98, name
