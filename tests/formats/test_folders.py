"""Folders: whole or not at all, in shards, read lazily; pickles and hostile files refused."""

from __future__ import annotations

import errno
import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from formats.checkpoints import bare, random_layer, same_checkpoint, scheme
from labkit.core.errors import FormatError, StorageError
from labkit.formats import Checkpoint, detect, gptq, load
from labkit.formats.checkpoint import read_folder, write_folder
from labkit.formats.reading import open_tensors
from labkit.formats.writing import folder_aside, save_tensors, write_bytes


def small() -> Checkpoint:
    return bare(random_layer(64, 128, scheme(4, True, 32)))


@contextmanager
def no_file_beyond(size: int):
    """The system refuses to let any file of this process grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_leaves_nothing(tmp_path):
    with no_file_beyond(2000), pytest.raises(StorageError, match="could not be written") as caught:
        gptq.save(small(), tmp_path / "m")
    assert isinstance(caught.value, FormatError) and isinstance(caught.value, OSError)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.arange(4)})
    with no_file_beyond(2000), pytest.raises(StorageError):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(4000)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert open_tensors(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2, 3]
    gptq.save(small(), tmp_path / "m")
    with no_file_beyond(2000), pytest.raises(StorageError):
        gptq.save(small(), tmp_path / "m", overwrite=True)
    assert same_checkpoint(small(), gptq.load(tmp_path / "m"))


def test_the_message_says_why(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"No space left.*Make room"):
        write_bytes(tmp_path / "a", b"a")


def test_what_fails_within_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), folder_aside(tmp_path / "m") as aside:
        (aside / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "m").mkdir()
    gptq.save(small(), tmp_path / "m")  # an empty folder is in nobody's way
    with pytest.raises(FormatError, match="overwrite=True"):
        gptq.save(small(), tmp_path / "m")
    gptq.save(small(), tmp_path / "m", version="gptq_v2", overwrite=True)
    assert read_folder(tmp_path / "m").quantization["checkpoint_format"] == "gptq_v2"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_shards_and_their_index(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    checkpoint = Checkpoint({"model_type": "llama"}, tensors, {})
    write_folder(tmp_path / "m", checkpoint, iter([]), {"quant_method": "x"}, shard_bytes=900)
    names = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    read = open_tensors(tmp_path / "m")
    assert {name: read[name].tolist() for name in read} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_tensors_that_share_memory_are_separated(tmp_path):
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "a.safetensors", {"a": whole, "b": whole, "c": whole[2:4], "d": whole})
    read = open_tensors(tmp_path / "a.safetensors")
    assert read["a"].tolist() == read["b"].tolist() and read["c"].tolist() == [2, 3]


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_every_type_and_shape_comes_back(tmp_path, dtype, shape):
    ours = torch.ones(shape).to(dtype)
    save_tensors(tmp_path / "a.safetensors", {"x": ours})
    theirs = open_tensors(tmp_path / "a.safetensors")["x"]
    assert (theirs.dtype, theirs.shape) == (dtype, ours.shape)
    assert torch.equal(theirs.to(torch.float32), ours.to(torch.float32))


def _indexed(folder: Path, weight_map: object) -> None:
    content = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "x/../a.safetensors", 3, ""])
def test_an_index_that_points_elsewhere(tmp_path, name):
    (tmp_path / "m").mkdir()
    for folder in (tmp_path, tmp_path / "m"):
        save_tensors(folder / "a.safetensors", {"x": torch.ones(2)})
    _indexed(tmp_path / "m", {"x": name})
    with pytest.raises(FormatError):
        open_tensors(tmp_path / "m")


@pytest.mark.parametrize("weight_map", [{"x": "a.safetensors"}, {"z": "a.safetensors"}, {}, [], 1])
def test_an_index_that_is_wrong(tmp_path, weight_map):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2), "y": torch.ones(2)})
    _indexed(tmp_path, weight_map)
    with pytest.raises(FormatError):
        open_tensors(tmp_path)


def test_two_files_with_one_tensor(tmp_path):
    for name in ("a", "b"):
        save_tensors(tmp_path / f"{name}.safetensors", {"x": torch.ones(2)})
    with pytest.raises(FormatError, match=r"also in a\.safetensors"):
        open_tensors(tmp_path)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin are pickles, which labkit never"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no JSON"),
        ("[]", "instead of an object"),
        ("[" * 100_000, "no JSON"),
        ("1" * 10_000, "no JSON"),
        ('{"quantization_config": 3}', "no object"),
        ('{"quantization_config": {"quant_method": "exl2"}}', "labkit reads gptq"),
        ('{"quantization_config": {"quant_method": ["gptq"]}}', "labkit reads gptq"),
    ],
)
def test_a_config_that_is_none(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(FormatError, match=message):
        detect(tmp_path)


def test_what_is_not_quantized(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert detect(tmp_path) is None
    with pytest.raises(FormatError, match="nothing in it is quantized"):
        load(tmp_path)
    with pytest.raises(FormatError, match="Check the path"):
        detect(tmp_path / "nowhere")
