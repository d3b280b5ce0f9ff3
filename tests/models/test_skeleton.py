"""Folders that lie: config.json against the tensors, hostile files, pickles, other models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, tiny, tokens

from labkit.core.errors import FormatError, ModelError
from labkit.models.skeleton import Skeleton, parameters_on_meta


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_filled_skeleton_is_the_model(name: str, tmp_path: Path) -> None:
    """Buffers (rotary frequencies, Gemma's embedding scale) are right, not only parameters."""
    model = tiny(name)
    model.save_pretrained(tmp_path)
    skeleton = Skeleton(tmp_path)
    assert all(p.device.type == "meta" for p in skeleton.model.parameters())
    assert all(b.device.type == "cpu" for b in skeleton.model.buffers())
    skeleton.fill(skeleton.places)
    skeleton.model.tie_weights()
    assert torch.equal(skeleton.model(tokens()).logits, model(tokens()).logits)
    skeleton.empty(skeleton.places)
    assert all(skeleton.model.get_parameter(n).device.type == "meta" for n in skeleton.places)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 3}, r"the files lack model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"config\.json knows nothing of model\.layers\.1\."),
        ({"hidden_size": 32}, r"has shape .*config\.json asks for"),
        ({"intermediate_size": 130}, r"has shape \[128, 64\], config.json asks for \[130, 64\]"),
        ({"vocab_size": 127}, r"embed_tokens.* has shape \[128, 64\]"),
        ({"tie_word_embeddings": True}, None),
        ({"attention_bias": True}, r"the files lack .*bias"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers is 1000000000, there are 21 tensors"),
        ({"num_hidden_layers": "many"}, r"num_hidden_layers is 'many'"),
        ({"hidden_size": 2**40}, r"disagree"),
        ({"hidden_size": -4}, r"disagree"),
        ({"hidden_size": "wide"}, r"disagree"),
        ({"hidden_act": "magic"}, r"disagree"),
        ({"model_type": "bert"}, r"architecture 'bert' is not one that labkit walks"),
        ({"model_type": 7}, r"architecture 7 is not"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized already"),
    ],
)
def test_config_and_tensors_must_belong_together(
    folder: Path, settings: dict, message: str | None
) -> None:
    change(folder, **settings)
    if message is None:  # tying discards a head that is there: allowed, the file is a superset
        assert "lm_head.weight" not in Skeleton(folder).places
        return
    with pytest.raises(ModelError, match=message) as caught:
        Skeleton(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_and_an_additional_tensor_are_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"the files lack model\.norm\.weight"):
        Skeleton(folder)
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(64), "x": torch.ones(1)}))
    with pytest.raises(ModelError, match=r"knows nothing of x"):
        Skeleton(folder)


def test_weights_that_are_integers_are_refused(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(FormatError, match=r"up_proj\.weight is torch\.int8"):
        Skeleton(folder)


def hostile(path: Path, header: dict, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "os.system", "shape": [2], "data_offsets": [0, 8]}},
        {"a": 1},
    ],
)
def test_a_header_that_lies_is_refused(folder: Path, header: dict) -> None:
    hostile(folder / "model.safetensors", header, b"\0" * 8)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        Skeleton(folder)


@pytest.mark.parametrize("keep", [0, 7, 8, 50, 5000, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        Skeleton(folder)


def test_a_pickle_is_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin are pickles.*never loads"):
        Skeleton(folder)


def test_config_that_is_missing_or_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match="no JSON"):
        Skeleton(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"config\.json"):
        Skeleton(folder)


def test_code_beside_the_weights_does_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("import pathlib; pathlib.Path('owned').touch()")
    change(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    Skeleton(folder)
    assert not (folder / "owned").exists() and not Path("owned").exists()


def test_parameters_on_meta_ends() -> None:
    with parameters_on_meta():
        inside = torch.nn.Linear(3, 3)
    assert inside.weight.device.type == "meta"
    assert torch.nn.Linear(3, 3).weight.device.type == "cpu"
