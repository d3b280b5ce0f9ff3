"""A model of half a gigabyte there and back: memory holds a tensor, not the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# What the process holds itself; pages of mapped files are the system's to take back.
_SCRIPT = """
import json, re, sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny_models import tiny
from labkit.models import to_gguf as conversion
from labkit.models.from_gguf import from_gguf
conversion.folder_tokenizer = lambda folder: None
work = Path({work!r})

def held():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) / 1024

sizes = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers={layers}, vocab_size=256)
tiny("llama", **sizes).bfloat16().save_pretrained(work / "model", max_shard_size="100MB")
size = sum(path.stat().st_size for path in (work / "model").iterdir()) / 2**20
tiny("llama").save_pretrained(work / "small")
conversion.to_gguf(work / "small", work / "small.gguf", "Q8_0")
from_gguf(work / "small.gguf", work / "small_back")
import gc; gc.collect()
import ctypes; ctypes.CDLL("libc.so.6").malloc_trim(0)
before, peaks = held(), [0.0, 0.0]
def watch(which):
    def tick(*said):
        peaks[which] = max(peaks[which], held() - before)
    return tick
conversion.to_gguf(work / "model", work / "model.gguf", "Q8_0", progress=watch(0))
from_gguf(
    work / "model.gguf", work / "back", "bfloat16", shard_bytes=32 * 2**20, progress=watch(1)
)
print(json.dumps([size, *peaks]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    script = _SCRIPT.format(tests=str(Path(__file__).parents[1]), work=str(tmp_path), layers=16)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, writing, reading = json.loads(done.stdout.splitlines()[-1])
    assert size > 500  # MiB
    # The largest tensor takes 8 MiB in the checkpoint, and 16 as float32.
    assert writing < 150
    assert reading < 200
