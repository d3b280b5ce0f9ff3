"""Loading: folders, clear refusals, and no reaching for the network unless asked."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from labkit.core.errors import ModelError
from labkit.models import bundled_folder, load, model_name


def test_the_bundled_model_loads_and_is_what_the_course_says():
    model, tokenizer = load("reference-lm")
    config = model.config
    assert (config.model_type, config.hidden_size, config.num_key_value_heads) == ("llama", 256, 2)
    assert 7e6 < sum(p.numel() for p in model.parameters()) < 8e6
    assert next(model.parameters()).dtype == torch.float32 and not model.training
    assert tokenizer("12")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.tokenize("12") == ["1", "2"]
    assert sum(path.stat().st_size for path in bundled_folder().iterdir()) < 20e6


def test_bfloat16_leaves_the_rotary_frequencies_alone():
    model, _ = load("reference-lm", dtype="bfloat16")
    exact, _ = load("reference-lm")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, exact.model.rotary_emb.inv_freq)


def test_the_environment_names_the_model(monkeypatch):
    monkeypatch.delenv("LABKIT_MODEL", raising=False)
    assert model_name() == "reference-lm"
    monkeypatch.setenv("LABKIT_MODEL", "some/model")
    assert model_name() == "some/model"
    assert model_name("other") == "other"


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        load(str(tmp_path))


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="pickles, which labkit never loads"):
        load(str(tmp_path))


def test_a_damaged_file_is_named(tmp_path):
    for path in bundled_folder().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=tmp_path.name):
        load(str(tmp_path))


def test_missing_weights_are_not_made_up(tmp_path):
    """transformers initialises what a checkpoint lacks at random, and only warns."""
    for path in bundled_folder().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(
        {"model.norm.weight": torch.ones(256)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match="lacks"):
        load(str(tmp_path))


def test_a_folder_that_is_not_there():
    with pytest.raises(ModelError, match="no such folder"):
        load("./no/such/folder")


def test_a_hub_name_offline():
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE once, when it is imported."""
    program = (
        "from labkit.core.errors import OfflineError\nfrom labkit.models import load\n"
        "try:\n    load('nobody/no-such-model-anywhere')\n"
        "except OfflineError as error:\n    print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert "bundled model" in done.stdout, done.stderr
