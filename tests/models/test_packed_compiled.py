"""torch.compile on a model of packed bytes: one graph, the same logits, and `generate` on it."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from tiny_folders import FOLDERS, TOKENS, logits

from labkit.models.packed import load_packed


def test_it_is_compiled_without_a_break(tmp_path):
    torch.compiler.reset()
    path = FOLDERS["gptq 4"](tmp_path / "m")
    packed, _ = load_packed(path)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        found = compiled(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(found, logits(packed), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor calls a C++ compiler")
def test_inductor_compiles_it_and_generate_runs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    packed, _ = load_packed(FOLDERS["gptq 4"](tmp_path / "m"))
    generate = partial(packed.generate, TOKENS, max_new_tokens=8, do_sample=False)
    wanted, chosen = logits(packed), generate()
    packed.forward = torch.compile(packed.forward)
    torch.testing.assert_close(logits(packed), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(generate(cache_implementation="static"), chosen)
