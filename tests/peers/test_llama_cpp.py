"""llama.cpp as a peer: it answers, and what it refuses comes as an error that says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny, tokens

from labkit.core.errors import PeerError
from labkit.evaluate.perplexity import windows
from labkit.models.to_gguf import to_gguf
from labkit.peers.llama_cpp import LlamaCpp, quantize_file


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf((tiny("llama"), None), tmp_path_factory.mktemp("peer") / "m.gguf", "F32").path


def test_logits_do_not_depend_on_what_was_asked_before(path: Path) -> None:
    with LlamaCpp(path, 64) as llama:
        first = llama.logits([1, 2, 3])
        llama.logits([9, 8, 7, 6])
        assert np.array_equal(llama.logits([1, 2, 3]), first)
        assert first.shape == (3, 128) and first.dtype == np.float32


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (40, 40)])
@torch.no_grad()
def test_perplexity_scores_the_windows_that_labkit_scores(
    path: Path, context: int, stride: int
) -> None:
    model = tiny("llama")
    ids = tokens(1, 51)[0]
    total = 0.0
    for start, end, scored in windows(len(ids), context, stride):
        logits = model(ids[None, start : end - 1]).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits, ids[start + 1 : end], reduction="none")
        total += float(loss[scored - start - 1 :].sum())
    with LlamaCpp(path, 64) as llama:
        found = llama.perplexity(ids.tolist(), context, stride)
    assert found.tokens == 50
    assert found.nll_sum == pytest.approx(total, rel=1e-5)


@torch.no_grad()
def test_tokens_follow_one_another_with_the_cache(path: Path) -> None:
    model, ids = tiny("llama"), [3, 1, 4, 1, 5]
    with LlamaCpp(path, 64) as llama:
        found = llama.generate(ids, 6)
    expected = list(ids)
    for _ in range(6):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert found == expected[5:]


def test_what_does_not_fit_is_refused(path: Path) -> None:
    with LlamaCpp(path, 8) as llama:
        for ids, what in (([], "0 tokens"), ([1] * 9, "9 tokens in a context of 8")):
            with pytest.raises(PeerError, match=what):
                llama.logits(ids)
        for ids in ([128], [-1]):
            with pytest.raises(PeerError, match="beyond 127"):
                llama.logits(ids)


def test_a_file_that_llama_cpp_refuses_says_why(path: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(PeerError, match=r"refuses it: .*fail"):
        LlamaCpp(wrong)
    with pytest.raises(PeerError, match="refuses it"):
        LlamaCpp(tmp_path / "none.gguf")
    with pytest.raises(PeerError, match=r"does not quantize it: .*fail"):
        quantize_file(wrong, tmp_path / "out.gguf", 7)
