"""Adapters on disk: the real peft reads ours, we read peft's, and bad folders are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_nets import token_batch
from tiny_models import tiny, tokens
from torch import nn

from labkit.core.errors import FormatError, ModelError
from labkit.training.qlora import adapted_layers, add_adapters, freeze_base
from labkit.training.qlora_files import CONFIG, TENSORS, load_adapters, save_adapters
from labkit.training.trainer import TrainSettings, train

peft = pytest.importorskip("peft")


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(2, 8)).logits


def learned(model: nn.Module, **settings) -> nn.Module:
    """With adapters that are not nothing any more."""
    add_adapters(model, **({"rank": 4, "alpha": 6.0} | settings))
    train(model, token_batch, TrainSettings(steps=3, warmup=1, lr=1e-2))
    return model


@pytest.fixture(scope="module")
def tuned() -> nn.Module:
    return learned(freeze_base(tiny("llama")), dropout=0.25)


@pytest.fixture
def folder(tuned, tmp_path):
    save_adapters(tuned, tmp_path / "adapters")
    return tmp_path / "adapters"


def test_peft_reads_what_we_wrote(tuned, folder):
    theirs = peft.PeftModel.from_pretrained(tiny("llama"), folder)
    ours = load_adapters(tiny("llama"), folder).eval()
    assert torch.equal(logits(theirs), logits(ours))
    assert not torch.allclose(logits(ours), logits(tiny("llama")), atol=1e-2)
    config = peft.PeftConfig.from_pretrained(folder)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 6.0, 0.25)
    assert not any(path.suffix in {".bin", ".pt"} for path in folder.iterdir())


def test_the_base_that_they_were_trained_beside_gives_the_same_logits(tuned, folder):
    again = load_adapters(freeze_base(tiny("llama")), folder).eval()
    assert torch.equal(logits(again), logits(tuned))
    wanting = {name for name, p in again.named_parameters() if p.requires_grad}
    assert wanting == {name for name, p in tuned.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_we_read_what_peft_wrote(tmp_path, family, rslora):
    names = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}[family]
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=names, init_lora_weights=False, use_rslora=rslora,
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = peft.get_peft_model(tiny(family), config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_adapters(tiny(family), tmp_path).eval()
    assert len(adapted_layers(ours)) == 2 * len(names)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    # And onto a 4-bit base: only the base's rounding lies between them.
    assert adapted_layers(load_adapters(freeze_base(tiny(family)), tmp_path))


def test_saving_needs_adapters_and_room(tuned, folder):
    with pytest.raises(ModelError, match="add_adapters"):
        save_adapters(tiny("llama"), folder, overwrite=True)
    with pytest.raises(FormatError, match="overwrite=True"):
        save_adapters(tuned, folder)
    save_adapters(tuned, folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, TENSORS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is '4'"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_dropout": 1.5}, "lora_dropout 1.5"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 5}, "by adapter_config.json of rank 5"),
    ],
)
def test_configs_that_say_something_else_are_refused(folder, change, message):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = tiny("llama")
    with pytest.raises(FormatError, match=message):
        load_adapters(model, folder)
    assert not adapted_layers(model)


def test_adapters_of_another_model_are_refused(folder):
    with pytest.raises(ModelError, match="another model"):
        load_adapters(tiny("gpt2"), folder)
    with pytest.raises(ModelError, match=r"another shape.*another model"):
        load_adapters(tiny("llama", intermediate_size=192), folder)
    with pytest.raises(ModelError, match="another model"):
        load_adapters(tiny("llama", num_hidden_layers=1), folder)
    with pytest.raises(ModelError, match="already"):
        load_adapters(load_adapters(tiny("llama"), folder), folder)


def test_damaged_tensors_are_refused(folder):
    path = folder / TENSORS
    tensors = load_file(path)
    first = next(name for name in tensors if "lora_A" in name)
    for bad, message in (
        ({first: torch.full_like(tensors[first], float("nan"))}, "NaN or infinity"),
        ({first: tensors[first].to(torch.int32)}, "int32"),
        ({"base_model.model.extra": torch.zeros(1)}, "pairs of lora_A and lora_B"),
    ):
        save_file(tensors | bad, path)
        model = tiny("llama")
        with pytest.raises(FormatError, match=message):
            load_adapters(model, folder)
        assert not adapted_layers(model)
    save_file({k: v for k, v in tensors.items() if k != first}, path)
    with pytest.raises(FormatError, match="pairs of lora_A and lora_B"):
        load_adapters(tiny("llama"), folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError):
        load_adapters(tiny("llama"), folder)
    path.unlink()
    with pytest.raises(FormatError, match=r"No such file|no \*\.safetensors"):
        load_adapters(tiny("llama"), folder)


def test_pickles_are_never_read(folder):
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FormatError):
        load_adapters(tiny("llama"), folder)


def test_without_peft_the_error_says_so(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModelError, match="pip install peft"):
        load_adapters(tiny("llama"), folder)
