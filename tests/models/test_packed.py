"""Models on packed bytes: the logits of the unpacked ones, for every format, and bytes alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from formats.checkpoints import scheme
from tiny_folders import FOLDERS, TOKENS, difference, integers, logits, save
from tiny_models import FAMILIES, tiny, tokens

from labkit.core.errors import FormatError, ModelError, SchemeError
from labkit.formats import gptq
from labkit.formats.reading import open_tensors
from labkit.formats.writing import save_tensors
from labkit.models import load
from labkit.models.from_gguf import from_gguf
from labkit.models.packed import load_packed
from labkit.models.quantized import checkpoint_from, model_from
from labkit.models.to_gguf import to_gguf
from labkit.models.walking import linear_layers
from labkit.nn.quant_embedding import QuantEmbedding
from labkit.nn.quant_linear import QuantLinear
from labkit.quantize import rtn

# Of the largest logit. A product's sum is taken in another order, so its last bits differ.
EXACT = 5e-6
# Where inputs are rounded, such a bit now and then moves an input by a whole step.
ROUNDED = 5e-2
ROUNDING = {"W8A8", "W8A8 static", "FP8"}


@pytest.mark.parametrize("name", list(FOLDERS))
def test_a_folder_runs_packed(name, tmp_path):
    path = FOLDERS[name](tmp_path / "m")
    packed, tokenizer = load_packed(path)
    wanted = model_from(_loaded(path))
    bound = ROUNDED if name in ROUNDING else EXACT
    for ids in (TOKENS, TOKENS[:1, :1], tokens(3, 11)):
        assert difference(packed, wanted, ids) <= bound
    assert tokenizer is None and not packed.training
    _packed_everywhere(packed)
    table, head = packed.get_input_embeddings(), packed.get_output_embeddings()
    assert name == "llm.int8" or head.weight is table.weight  # tied, and held once


def _loaded(path):
    from labkit import formats

    return formats.load(path)


def _packed_everywhere(model):
    names = [n for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    assert len(names) >= 14
    for _, parameter in model.named_parameters():
        assert parameter.ndim == 1 or parameter.shape[0] == 128  # norms; float32 embeddings


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "Q4_0") for family in FAMILIES if family != "opt"), ("llama", "Q8_0")],
)
def test_a_gguf_file_runs_packed(family, kind, tmp_path):
    path = tmp_path / "model.gguf"
    to_gguf((tiny(family), None), path, kind)
    packed, tokenizer = load_packed(path)
    from_gguf(path, tmp_path / "back")
    wanted = _without_tokenizer(tmp_path / "back")
    assert tokenizer is None
    assert difference(packed, wanted) <= EXACT
    assert difference(packed, wanted, TOKENS[:1, :1]) <= EXACT
    assert isinstance(packed.get_input_embeddings(), QuantEmbedding)
    matrices = [name for name, parameter in packed.named_parameters() if parameter.ndim > 1]
    assert matrices == (["transformer.wpe.weight"] if family == "gpt2" else [])  # float32 in a file


def _without_tokenizer(folder):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.float().eval()


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2", "phi3"])
def test_other_families_from_folders(family, tmp_path):
    path = save(gptq, tmp_path / "m", integers(4, False, 32), family, version="gptq_v2")
    packed, _ = load_packed(path)
    assert difference(packed, model_from(gptq.load(path))) <= EXACT


def test_the_bundled_model_with_its_tokenizer(tmp_path):
    model, tokenizer = load("reference-lm")
    to_gguf((model, tokenizer), tmp_path / "model.gguf", "Q4_K_M")
    layers = {
        n: rtn.quantize(m.weight, scheme(4, True, 64)) for n, m in linear_layers(model).items()
    }
    gptq.save(checkpoint_from(model.bfloat16(), layers, tokenizer), tmp_path / "gptq")
    for path in (tmp_path / "model.gguf", tmp_path / "gptq"):
        packed, reader = load_packed(path)
        assert reader("12 is a number")["input_ids"] == tokenizer("12 is a number")["input_ids"]
        prompt = reader("The ", return_tensors="pt")
        out = packed.generate(**prompt, max_new_tokens=8, do_sample=False)
        again = packed.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=False)
        assert torch.equal(out, again) and out.shape[1] > prompt["input_ids"].shape[1]
    wanted, _ = load(str(tmp_path / "gptq"))
    assert torch.equal(out, wanted.generate(**prompt, max_new_tokens=8, do_sample=False))
    assert difference(packed, wanted) <= EXACT


def test_activations_in_bfloat16(tmp_path):
    path = FOLDERS["gptq 4"](tmp_path / "m")
    packed, _ = load_packed(path, dtype="bfloat16")
    assert packed.dtype == packed.lm_head.weight.dtype == torch.bfloat16
    assert packed(input_ids=TOKENS).logits.dtype == torch.bfloat16
    assert difference(packed, model_from(gptq.load(path))) <= 0.05


def test_eight_bit_activations(tmp_path):
    path = FOLDERS["gptq 4"](tmp_path / "m")
    packed, _ = load_packed(path, activation_bits=8)
    wanted = model_from(gptq.load(path))
    assert 1e-4 < difference(packed, wanted) < ROUNDED
    layers = [m for m in packed.modules() if isinstance(m, QuantLinear)]
    assert {m.activation for m in layers if m.weight.form.kind == "int4 panels"} == {"8"}
    to_gguf((tiny("llama_gqa_tied"), None), tmp_path / "m.gguf", "Q4_0")
    rounded, _ = load_packed(tmp_path / "m.gguf", activation_bits=8)
    assert 1e-4 < difference(rounded, load_packed(tmp_path / "m.gguf")[0]) < ROUNDED
    head = rounded.get_output_embeddings()
    assert head.activation == "8" and head.weight is rounded.get_input_embeddings().weight
    with pytest.raises(SchemeError, match="no layer has a kernel"):
        load_packed(FOLDERS["nf4"](tmp_path / "nf4"), activation_bits=8)
    with pytest.raises(ModelError, match="4 activation bits"):
        load_packed(path, activation_bits=4)


def test_a_state_dict_and_a_copy(tmp_path):
    packed, _ = load_packed(FOLDERS["awq"](tmp_path / "m"))
    other = copy.deepcopy(packed)
    for name, part in other.state_dict().items():
        if "_extra_state" not in name:
            part.view(-1).zero_()
    assert difference(other, packed) > 0.1
    other.load_state_dict(packed.state_dict())
    assert torch.equal(logits(other), logits(packed))


def _restate(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 128}, "by config.json"),
        ({"vocab_size": 10**12}, "by config.json"),
        ({"num_hidden_layers": 10**12}, "tensors for 2 blocks"),
        ({"model_type": "gpt2"}, "belongs nowhere"),
        ({"attention_bias": True}, "no tensor for"),
    ],
)
def test_config_that_disagrees_with_the_tensors(tmp_path, changes, message):
    path = FOLDERS["gptq 4"](tmp_path / "m")
    _restate(path, **changes)
    with pytest.raises(FormatError, match=message):
        load_packed(path)


def test_tensors_are_neither_missing_nor_left_over(tmp_path):
    path = FOLDERS["awq"](tmp_path / "m")
    whole = dict(open_tensors(path))
    less = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    save_tensors(path / "model.safetensors", less)
    with pytest.raises(FormatError, match=r"no tensor for 'model\.norm\.weight'"):
        load_packed(path)
    save_tensors(path / "model.safetensors", whole | {"model.extra.weight": torch.ones(2)})
    with pytest.raises(FormatError, match="belongs nowhere"):
        load_packed(path)


def test_refusals(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_packed(tmp_path / "nothing")
    with pytest.raises(ModelError, match="no dtype"):
        load_packed(tmp_path, dtype="int8")
    with pytest.raises(FormatError, match="no such file"):
        load_packed(tmp_path / "nothing.gguf")
    tiny("llama").save_pretrained(tmp_path / "float")
    with pytest.raises(FormatError, match="nothing in it is quantized"):
        load_packed(tmp_path / "float")


def test_a_gguf_file_that_shrinks_or_lies(tmp_path):
    path = tmp_path / "model.gguf"
    to_gguf((tiny("llama"), None), path, "Q4_0")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4096])
    with pytest.raises(FormatError):
        load_packed(path)
    path.write_bytes(whole.replace(b"llama.embedding_length", b"llama.embedding_lengtX"))
    with pytest.raises((FormatError, ModelError)):
        load_packed(path)
