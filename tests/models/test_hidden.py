"""Hidden states: the same bits from memory and from files, and memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from tiny_models import tiny, tokens

from labkit.core.errors import FormatError, StorageError
from labkit.core.scheme import QuantScheme
from labkit.evaluate import resident
from labkit.models import hidden, importance
from labkit.models.blockwise import quantize_blockwise
from labkit.models.hidden import HiddenStates, StoredBatch
from labkit.models.methods import Awq, Gptq

INT4 = QuantScheme(4, granularity="group", group_size=32)
CPU = torch.device("cpu")


def batches(count: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(count, 2, 4, 8).unbind())


def test_few_stay_in_memory_and_more_go_to_a_temporary_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hidden.tempfile, "tempdir", str(tmp_path))
    given = batches()
    with HiddenStates(in_memory=3 * given[0].nbytes) as states:
        kept = states.keep(0, iter(given))
        assert all(mine is batch for mine, batch in zip(kept, given, strict=True))
        assert not list(tmp_path.iterdir())
    with HiddenStates(in_memory=2 * given[0].nbytes) as states:
        kept = states.keep(0, iter(given))
        for mine, batch in zip(kept, given, strict=True):
            assert isinstance(mine, StoredBatch) and torch.equal(mine.read(), batch)
            assert mine.read() is not mine.read()
        assert len(list(tmp_path.glob("*/inputs-00000/*"))) == 3
        states.drop(0)
        assert not list(tmp_path.glob("*/*"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_kept_is_read_again(tmp_path, dtype) -> None:
    given = [batch.to(dtype) for batch in batches()]
    HiddenStates(tmp_path).keep(4, iter(given))
    again = HiddenStates(tmp_path).read(4, 3, CPU)
    assert all(torch.equal(a.read(), b) for a, b in zip(again, given, strict=True))
    assert {batch.read().dtype for batch in again} == {dtype}
    for index, count in ((4, 2), (4, 4), (3, 3)):
        with pytest.raises(FormatError, match="not the inputs of a block"):
            HiddenStates(tmp_path).read(index, count, CPU)
    # A run that was killed between the inputs and the block writes them anew.
    HiddenStates(tmp_path).keep(4, iter(given[:1]))
    assert torch.equal(HiddenStates(tmp_path).read(4, 1, CPU)[0].read(), given[0])


def test_one_batch_is_alive_at_a_time(tmp_path) -> None:
    alive: list[int] = []

    def made():
        seen: list[weakref.ref] = []
        for _ in range(4):
            alive.append(sum(batch() is not None for batch in seen))
            batch = torch.randn(2, 4, 8)
            seen.append(weakref.ref(batch))
            yield batch
            del batch

    HiddenStates(tmp_path).keep(0, made())
    assert alive == [0, 0, 0, 0]


def test_a_temporary_folder_that_cannot_be_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hidden.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="TMPDIR"), HiddenStates(in_memory=0) as states:
        states.keep(0, iter(batches()))


def test_a_failure_while_they_are_computed_leaves_nothing(tmp_path) -> None:
    def failing():
        yield batches()[0]
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        HiddenStates(tmp_path).keep(0, failing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "method", [Gptq(INT4, loop="plain"), Awq(INT4, steps=3, first_tokens=32)], ids=["gptq", "awq"]
)
def test_files_change_no_bit(method, tmp_path, monkeypatch) -> None:
    model, ids = tiny("llama", num_hidden_layers=3), tokens(5, 16)
    memory = quantize_blockwise(model, method, ids, batch_size=2)
    sums = importance.importance_matrix(model, ids, batch_size=2)
    written = []
    monkeypatch.setattr(HiddenStates.__init__, "__defaults__", (None, 0))
    real = HiddenStates._write
    monkeypatch.setattr(
        HiddenStates, "_write", lambda self, i, b: written.append(i) or real(self, i, b)
    )
    files = quantize_blockwise(model, method, ids, batch_size=2)
    assert written == [0, 1, 2]
    for name, layer in memory.layers.items():
        assert torch.equal(layer.codes, files.layers[name].codes)
        assert torch.equal(layer.scale, files.layers[name].scale)
    assert torch.equal(memory.model(ids).logits, files.model(ids).logits)
    again = importance.importance_matrix(model, ids, batch_size=2)
    assert all((sums.sums[name] == again.sums[name]).all() for name in sums.sums)


PROBE = """
import sys
from pathlib import Path
import torch
from labkit.core.scheme import QuantScheme
from labkit.evaluate.resident import peak_bytes, reset_peak, resident_bytes
from labkit.models import importance
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import Gptq

model, work, method, sequences = *map(Path, sys.argv[1:3]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
gptq = Gptq(QuantScheme(4, granularity="group", group_size=32), loop="plain")


def run(count, name):
    ids = torch.zeros(count, 64, dtype=torch.int64)
    if method == "gptq":
        quantize_blockwise(model, gptq, ids, work=work / name, batch_size=16)
    else:
        importance.importance_matrix(model, ids, batch_size=16)


run(16, "first")  # what is loaded or compiled once is there
reset_peak()
before = resident_bytes()
run(sequences, "many")
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not resident.available(), reason="memory is read from /proc")
@pytest.mark.parametrize("method", ["gptq", "importance"])
def test_memory_does_not_grow_with_the_number_of_sequences(method, tmp_path) -> None:
    """2048 sequences of 64 tokens: 32 MiB of hidden states, of which 256 KiB are a batch."""
    tiny("llama").save_pretrained(tmp_path / "model")
    probe = PROBE
    if method == "importance":  # it has no work folder; files begin beyond 1 MiB here
        probe = PROBE.replace(
            "model, work",
            "importance.HiddenStates.__init__.__defaults__ = (None, 2**20)\nmodel, work",
            1,
        )
    words = [tmp_path / "model", tmp_path, method, "2048"]
    found = subprocess.run(
        [sys.executable, "-c", probe, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    states = 2048 * 64 * 64 * 4
    assert int(found.stdout) < states / 3, f"{int(found.stdout) / 2**20:.1f} MiB"
