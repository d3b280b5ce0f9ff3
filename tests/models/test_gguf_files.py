"""Files on the way: from folders, tensor by tensor; refusals, kills, and damage."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny

from labkit.core.errors import FormatError, ModelError, SchemeError
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.values import u32
from labkit.formats.gguf.writer import Declared, GgufWriter
from labkit.models import to_gguf as conversion
from labkit.models.from_gguf import from_gguf, weights_of
from labkit.models.gguf_weights import FolderWeights
from labkit.models.loading import bundled_folder
from labkit.models.to_gguf import to_gguf


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in shards of a few tensors; its tokenizer is of no matter here."""
    tiny("llama_gqa_tied").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    monkeypatch.setattr(conversion, "folder_tokenizer", lambda folder: None)
    return tmp_path / "model"


def test_a_folder_gives_the_bytes_that_the_model_gives(folder: Path, tmp_path: Path) -> None:
    to_gguf(folder, tmp_path / "folder.gguf", "Q8_0")
    to_gguf((tiny("llama_gqa_tied"), None), tmp_path / "memory.gguf", "Q8_0")
    with GgufFile(tmp_path / "folder.gguf") as one, GgufFile(tmp_path / "memory.gguf") as other:
        assert one.metadata["general.name"] == "model"
        assert one.tensors.keys() == other.tensors.keys()
        for name in one.tensors:
            assert np.array_equal(one.raw(name), other.raw(name))


def test_without_a_vocabulary_a_folder_needs_no_tokenizer(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="tokenizer"):
        to_gguf(tmp_path / "model", tmp_path / "no.gguf", "Q8_0")
    to_gguf(tmp_path / "model", tmp_path / "ids.gguf", "Q8_0", vocabulary=False)
    with GgufFile(tmp_path / "ids.gguf") as file:
        assert file.metadata["tokenizer.ggml.model"] == "none"


def test_one_tensor_at_a_time_is_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    read = FolderWeights.read

    def watched(self: FolderWeights, name: str) -> torch.Tensor:
        if any(reference() is not None for reference in alive):
            gc.collect()  # slow, so only where something is left
        assert not any(reference() is not None for reference in alive)
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(FolderWeights, "read", watched)
    done = to_gguf(folder, tmp_path / "model.gguf", "Q8_0")
    assert len(alive) == len(done.tensors)


def test_large_tensors_are_encoded_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama_gqa_tied")
    to_gguf((model, None), tmp_path / "whole.gguf", "Q8_0")
    monkeypatch.setattr(conversion, "_CHUNK", 5 * 64)
    to_gguf((model, None), tmp_path / "pieces.gguf", "Q8_0")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_progress_names_every_tensor(folder: Path, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    done = to_gguf(folder, tmp_path / "model.gguf", "F16", progress=lambda *it: said.append(it))
    count = len(done.tensors)
    assert [name for name, _, _ in said] == [tensor.name for tensor in done.tensors]
    assert [number for _, number, _ in said] == list(range(1, count + 1))
    assert {total for _, _, total in said} == {count}


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path: Path) -> None:
    source = (tiny("llama"), None)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(FormatError, match="already"):
        to_gguf(source, path, "F16")
    assert path.read_bytes() == b"mine"
    to_gguf(source, path, "F16", force=True)
    assert path.stat().st_size > 1000


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from tiny_models import tiny
from labkit.models.to_gguf import to_gguf
def stop(name, done, total):
    if done == total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
to_gguf((tiny("llama"), None), {path!r}, "F32", progress=stop, force=True)
"""


def test_killed_halfway_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the old one")
    script = _KILLED.format(tests=str(Path(__file__).parents[1]), path=str(path))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert path.read_bytes() == b"the old one"
    to_gguf((tiny("llama"), None), path, "F32", force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]
    assert len(dict(weights_of(path))) == 21


@pytest.mark.parametrize("bad", ["Q4_K_XXL", "", "IQ2_XXS"])
def test_an_unknown_type_is_refused_before_anything_is_written(bad: str, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="Q4_K_M"):
        to_gguf((tiny("llama"), None), tmp_path / "model.gguf", bad)
    assert not any(tmp_path.iterdir())


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="tokenizer"):
        to_gguf(tmp_path / "model", tmp_path / "model.gguf", "F16")


def test_shards_come_back_with_an_index(tmp_path: Path) -> None:
    model = tiny("llama")
    to_gguf((model, None), tmp_path / "model.gguf", "BF16")
    from_gguf(tmp_path / "model.gguf", tmp_path / "back", "bfloat16", shard_bytes=20_000)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 3
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for name, tensor in model.state_dict().items():
        expected = tensor.bfloat16()
        assert torch.equal(found[name], expected)
    with pytest.raises(FormatError, match="already"):
        from_gguf(tmp_path / "model.gguf", tmp_path / "back")
    from_gguf(tmp_path / "model.gguf", tmp_path / "back", overwrite=True)
    assert not list((tmp_path / "back").glob("*.index.json"))


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q2_K", "IQ4_XS"])
def test_quantized_weights_come_back_to_the_bit(mix: str, tmp_path: Path) -> None:
    import gguf as peer

    sizes = {"hidden_size": 256, "intermediate_size": 256}
    path = to_gguf((tiny("qwen2", **sizes), None), tmp_path / "model.gguf", mix).path
    ours = dict(weights_of(path))  # qwen2: no row changes its place
    for tensor in peer.GGUFReader(path).tensors:
        theirs = peer.dequantize(tensor.data, tensor.tensor_type)
        name = tensor.name.replace("blk.0.attn_q", "model.layers.0.self_attn.q_proj")
        if name in ours:
            assert np.array_equal(ours[name].numpy(), theirs)
        if tensor.name == "token_embd.weight":
            assert np.array_equal(ours["model.embed_tokens.weight"].numpy(), theirs)
    assert "model.layers.0.self_attn.q_proj.weight" in ours


def _rewritten(source: Path, path: Path, change) -> Path:
    """The file again, with other metadata or without some tensors."""
    with GgufFile(source) as file:
        fields, names = change(dict(file.fields), list(file.tensors))
        declared = [Declared(n, file.tensors[n].shape, file.tensors[n].type_name) for n in names]
        with GgufWriter(path, fields, declared) as writer:
            for name in names:
                writer.write(name, np.array(file.raw(name)))
    return path


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("llama.block_count", 3, "do not make a model"),
        ("llama.block_count", 2**30, "blocks of 21 tensors"),
        ("llama.block_count", 0, "block_count is 0"),
        ("llama.block_count", 2**31, "block_count"),
        ("llama.attention.head_count", 0, "head_count is 0"),
        ("llama.attention.head_count", 3, "heads"),
        ("llama.embedding_length", 128, "do not make a model"),
        ("llama.feed_forward_length", 2**30, "do not make a model"),
        ("llama.attention.head_count_kv", 3, "heads"),
        ("llama.rope.freq_base", 0, "rope.freq_base is 0"),
    ],
)
def test_settings_that_contradict_the_tensors(
    key: str, value: int, what: str, tmp_path: Path
) -> None:
    source = to_gguf((tiny("llama"), None), tmp_path / "model.gguf", "F16").path

    def change(fields, names):
        dropped = {"llama.attention.key_length", "llama.attention.value_length"}
        return {k: v for k, v in fields.items() if k not in dropped} | {key: u32(value)}, names

    path = _rewritten(source, tmp_path / "other.gguf", change)
    with pytest.raises((FormatError, ModelError), match=what):
        from_gguf(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "missing", ["token_embd.weight", "blk.1.attn_q.weight", "output_norm.weight"]
)
def test_a_missing_tensor_is_refused(missing: str, tmp_path: Path) -> None:
    source = to_gguf((tiny("llama"), None), tmp_path / "model.gguf", "F16").path
    path = _rewritten(
        source, tmp_path / "other.gguf", lambda f, names: (f, [n for n in names if n != missing])
    )
    with pytest.raises((FormatError, ModelError)):
        from_gguf(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    from labkit.formats.gguf.values import string

    path = tmp_path / "other.gguf"
    with GgufWriter(path, {"general.architecture": string("mamba")}, []):
        pass
    with pytest.raises(ModelError, match="'mamba'"):
        from_gguf(path, tmp_path / "back")


def test_the_bundled_folder_runs_in_llama_cpp_with_its_tokenizer(tmp_path: Path) -> None:
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = to_gguf(bundled_folder(), tmp_path / "model.gguf", "Q8_0").path
    prompt = "def mean(values):\n    return"
    with_vocabulary = Llama(str(path), n_ctx=256, n_threads=1, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert with_vocabulary.tokenize(prompt.encode(), add_bos=False, special=True) == ids
    text = with_vocabulary(prompt, max_tokens=8, temperature=0)["choices"][0]["text"]
    assert text.strip()
    from_gguf(path, tmp_path / "back")
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back(prompt, add_special_tokens=False)["input_ids"] == ids
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")
