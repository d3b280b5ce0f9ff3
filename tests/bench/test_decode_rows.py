"""`labkit bench decode`: both sides write the same text from one file; times are not judged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from labkit.bench import decode_rows, random_gguf
from labkit.bench.random_gguf import LlamaShape
from labkit.bench.rows import BenchRow, Effort
from labkit.core.errors import FormatError, PeerMissingError
from labkit.formats.gguf.reader import GgufFile
from labkit.models.decode import decode
from labkit.models.decoder import decoder_from_gguf
from labkit.peers import ggml
from labkit.peers.llama_cpp import LlamaCpp
from labkit.peers.llama_decode import LlamaDecode

needs_llama = pytest.mark.skipif(not ggml.available(), reason="llama-cpp-python is not there")
_TINY = LlamaShape(256, 2, 512, 4, 2, 512, 512)


@needs_llama
def test_every_row_has_both_sides_and_no_file_stays(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(decode_rows, "_QUICK_SHAPE", _TINY)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = list(decode_rows.rows(Effort(quick=True, rounds=1, threads=1)))
    assert all(isinstance(row, BenchRow) for row in found)
    peers = {(row.what.split(",")[0], row.peer.split()[0]) for row in found}
    assert ("F16", "llama-cpp-python") in peers
    for type_name in decode_rows.TYPES:
        assert (type_name, "llama-cpp-python") in peers and (type_name, "labkit,") in peers
        beside = [r for r in found if r.what.startswith(type_name) and "float32 act" in r.what]
        assert {row.peer for row in beside} == {"labkit, F16"}
    for row in found:
        assert row.seconds > 0 and row.peer_seconds > 0
        assert ("prefill of 128" in row.what) != (": a token" in row.what)
    assert not list(tmp_path.iterdir())


@needs_llama
@pytest.mark.parametrize("type_name", ["F16", "Q4_0", "Q4_K"])
def test_llama_cpp_writes_the_tokens_that_the_decoder_writes(type_name, tmp_path) -> None:
    path = tmp_path / "m.gguf"
    assert random_gguf.write(path, _TINY, type_name) == path.stat().st_size
    prompt = np.random.default_rng(1).integers(0, 512, 20).tolist()
    ours = decode(decoder_from_gguf(path, threads=2), prompt, 6).tokens
    with LlamaDecode(path, 64, 1) as llama:
        first, seconds = llama.prefill(prompt)
        more, steps = llama.decode(first, 5)
        assert llama.prefill(prompt)[0] == first  # it has forgotten
    assert seconds > 0 and len(steps) == 5
    with LlamaCpp(path, 64, exact=False) as llama:
        assert llama.generate(prompt, 6) == [first, *more]
    # Both round activations, not at the same places: the likeliest token is clear at first.
    assert ours[0] == first


def test_the_missing_peer_is_said(monkeypatch) -> None:
    def missing(*_: object) -> None:
        raise PeerMissingError("llama-cpp-python is not installed", "llama_cpp")

    monkeypatch.setattr(decode_rows, "_QUICK_SHAPE", _TINY)
    monkeypatch.setattr(decode_rows, "LlamaDecode", missing)
    found = list(decode_rows.rows(Effort(quick=True, rounds=1, threads=1)))
    assert len(found) == 3 and all(isinstance(row, PeerMissingError) for row in found)


def test_the_random_model_has_the_shapes_that_were_asked_for(tmp_path: Path) -> None:
    random_gguf.write(tmp_path / "m.gguf", _TINY, "Q8_0")
    with GgufFile(tmp_path / "m.gguf") as file:
        sizes = {name: info.shape for name, info in file.tensors.items()}
        assert sum(np.prod(size) for size in sizes.values() if len(size) == 2) == _TINY.parameters
        assert sizes["blk.1.attn_k.weight"] == (128, 256)
        rows = file.read("blk.1.ffn_down.weight")
    assert rows.std() * 512**0.5 == pytest.approx(1, rel=0.02)
    assert len(np.unique(rows, axis=0)) > 100
    with pytest.raises(FormatError, match="already"):
        random_gguf.write(tmp_path / "m.gguf", _TINY, "Q8_0")
    assert random_gguf.ONE_B.parameters == pytest.approx(1.1e9, rel=0.01)
