"""bitsandbytes folders: bit-exact both ways, read by transformers, and hostile ones refused."""

from __future__ import annotations

import json

import bitsandbytes as bnb
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from formats.checkpoints import bare
from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.core.errors import FormatError
from labkit.core.scheme import QuantScheme
from labkit.formats import bitsandbytes, detect
from labkit.formats.bitsandbytes_state import read_state, state_bytes
from labkit.models.loading import bundled_folder, load
from labkit.models.quantized import checkpoint_from, model_from
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import nf4, rtn

# transformers 4 has another name for the dtype.
_DTYPE = "dtype" if transformers.__version__ >= "5" else "torch_dtype"
ON_CPU = {"device_map": "cpu", _DTYPE: torch.float32}
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """Some of bitsandbytes' loops are torch.compile'd: minutes for the same numbers."""
    with torch.compiler.set_stance("force_eager"):
        yield


def layer(rows=48, columns=128, seed=0, dtype=torch.float32, **settings):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return nf4.quantize(weight.to(dtype), **settings)


def quantized(model, **settings):
    return {
        name: nf4.quantize(weight_matrix(module).detach(), **settings)
        for name, module in linear_layers(model).items()
    }


def same(ours, theirs):
    parts = [(ours.packed, theirs.packed)]
    if isinstance(ours.absmax, NestedAbsmax):
        names = ("codes", "absmax", "levels")
        parts += [(getattr(ours.absmax, n), getattr(theirs.absmax, n)) for n in names]
        assert ours.absmax.offset == theirs.absmax.offset
    else:
        parts.append((ours.absmax, theirs.absmax))
    fields = ("shape", "quant_type", "block_size", "dtype")
    return all(torch.equal(a, b) for a, b in parts) and all(
        getattr(ours, f) == getattr(theirs, f) for f in fields
    )


def exact(model):
    """Let Linear4bit compute with its own dtype: on CPUs with AVX512-BF16 it takes bfloat16."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_what_is_written_is_read_back(tmp_path, quant_type, double):
    settings = {"quant_type": quant_type, "double_quantization": double}
    layers = [
        layer(block_size=32, **settings),
        layer(7, 33, seed=1, dtype=torch.bfloat16, **settings),
    ]
    ours = bare(*layers)
    bitsandbytes.save(ours, tmp_path / "m", shard_bytes=2000)
    assert detect(tmp_path / "m") == "bitsandbytes"
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    read = bitsandbytes.load(tmp_path / "m")
    assert list(read.layers) == list(ours.layers)
    assert all(same(ours.layers[name], read.layers[name]) for name in ours.layers)
    assert sorted(read.tensors) == sorted(ours.tensors)
    assert read.config == ours.config and dict(read.files) == dict(ours.files)


@pytest.mark.parametrize("double", [False, True])
def test_the_state_is_theirs_byte_by_byte(double):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, state = bnb.functional.quantize_4bit(weight, compress_statistics=double, quant_type="nf4")
    theirs = state.as_dict(packed=True)["quant_state.bitsandbytes__nf4"]
    ours = nf4.quantize(weight, double_quantization=double)
    assert torch.equal(state_bytes(ours), theirs)
    read = read_state(theirs, "nf4", "layer")
    assert (read.shape, read.dtype, read.block_size) == ((64, 128), torch.bfloat16, 64)


def test_transformers_computes_the_bundled_models_logits(tmp_path):
    model, tokenizer = load(str(bundled_folder()))
    model = model.to("cpu")
    layers = quantized(model, double_quantization=True)
    checkpoint = checkpoint_from(model, layers, tokenizer)
    bitsandbytes.save(checkpoint, tmp_path / "m", compute_dtype="float32")
    # The bundled model's config says bfloat16, and so the rest of it would be.
    theirs = exact(AutoModelForCausalLM.from_pretrained(tmp_path / "m", **ON_CPU))
    modules = dict(theirs.named_modules())
    assert all(isinstance(modules[name], bnb.nn.Linear4bit) for name in layers)
    for name, ours in layers.items():
        weight = modules[name].weight
        values = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(values, ours.dequantize())
    ids = torch.arange(200).reshape(2, 100) * 17 % 4096
    expected = logits(model_from(checkpoint), ids)
    assert torch.equal(logits(theirs, ids), expected)
    assert not torch.allclose(expected, logits(model, ids), atol=0.1)
    assert torch.equal(logits(load(str(tmp_path / "m"))[0].cpu(), ids), expected)


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2"])
def test_transformers_reads_other_families(tmp_path, family):
    model = tiny(family)
    layers = quantized(model, quant_type="fp4")
    dropped = list(layers)[-1]
    del layers[dropped]  # one layer stays as it is, and transformers must know
    checkpoint = checkpoint_from(model, layers)
    bitsandbytes.save(checkpoint, tmp_path / "m")
    theirs = exact(AutoModelForCausalLM.from_pretrained(tmp_path / "m", **ON_CPU))
    modules = dict(theirs.named_modules())
    assert all(isinstance(modules[name], bnb.nn.Linear4bit) for name in layers)
    assert not isinstance(modules[dropped], bnb.nn.Linear4bit)
    ids = torch.arange(24).reshape(2, 12) * 5 % 128
    assert torch.allclose(logits(theirs, ids), logits(model_from(checkpoint), ids), atol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_labkit_reads_what_transformers_wrote(tmp_path, double):
    model = tiny("llama_gqa_tied")
    model.save_pretrained(tmp_path / "float")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=config, **ON_CPU
    )
    theirs.save_pretrained(tmp_path / "m")
    read = bitsandbytes.load(tmp_path / "m")
    ours = quantized(model, double_quantization=double)
    assert sorted(read.layers) == sorted(ours)
    assert all(same(ours[name], read.layers[name]) for name in ours)
    ids = torch.arange(24).reshape(2, 12) * 5 % 128
    assert torch.equal(logits(model_from(read), ids), logits(exact(theirs), ids))
    # And what labkit writes of it is the same file, tensor by tensor.
    bitsandbytes.save(read, tmp_path / "again")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("m", "again"))
    assert sorted(first) == sorted(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_labkit_reads_llm_int8(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "float")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        **ON_CPU,
    )
    theirs.save_pretrained(tmp_path / "m")
    read = bitsandbytes.load(tmp_path / "m")
    assert sorted(read.layers) == sorted(linear_layers(model))
    for name, module in linear_layers(model).items():
        weight, restored = weight_matrix(module).detach(), read.layers[name].dequantize()
        # It rounds to float16 first.
        step = weight.abs().amax(1, keepdim=True) / 127
        assert bool(((restored - weight).abs() <= step * 0.6).all())
        stored = dict(theirs.named_modules())[name]
        scales = stored.weight.SCB if stored.weight.SCB is not None else stored.state.SCB
        assert torch.allclose(
            restored, bnb.functional.int8_vectorwise_dequant(stored.weight.data, scales)
        )
    assert model_from(read) is not None


def test_what_the_format_cannot_hold(tmp_path):
    def refuse(match, *layers):
        with pytest.raises(FormatError, match=match):
            bitsandbytes.save(bare(*layers), tmp_path / "m")
        assert not (tmp_path / "m").exists()

    refuse("QuantizedTensor", rtn.quantize(torch.randn(8, 64), QuantScheme(4)))
    refuse("2 kinds", layer(), layer(quant_type="fp4"))
    refuse("2 kinds", layer(), layer(double_quantization=True))
    refuse("0 kinds")
    good = layer(double_quantization=True)
    a = good.absmax
    odd = NestedAbsmax(a.codes, a.absmax, a.levels, a.offset, 512)
    refuse("nested block size", CodebookTensor(good.packed, odd, good.shape))


def damaged(tmp_path, change, double=True, settings=None):
    """A folder whose tensors went through `change`, and config.json through `settings`."""
    path = tmp_path / "m"
    bitsandbytes.save(bare(layer(double_quantization=double)), path, overwrite=True)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= settings or {}
    (path / "config.json").write_text(json.dumps(config))
    return path


STATE = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"
GOOD = {
    "quant_type": "nf4",
    "blocksize": 64,
    "dtype": "float32",
    "shape": [48, 128],
    "nested_blocksize": 256,
    "nested_dtype": "float32",
    "nested_offset": 2.0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"quant_type": "fp4"},
        {"quant_type": ["nf4"]},
        {"blocksize": 48},
        {"blocksize": True},
        {"blocksize": "64"},
        {"blocksize": 1e400},
        {"dtype": "float64"},
        {"dtype": "load"},
        {"dtype": 3},
        {"shape": [48, 129]},
        {"shape": [2**50, 2**50]},
        {"shape": [48.0, 128.0]},
        {"shape": [-48, -128]},
        {"shape": [0, 128]},
        {"shape": [6144]},
        {"shape": None},
        {"shape": {"0": 48}},
        {"nested_blocksize": 128},
        {"nested_blocksize": 10**400},
        {"nested_dtype": "float16"},
        {"nested_offset": float("nan")},
        {"nested_offset": float("inf")},
        {"nested_offset": "2.0"},
        {"nested_offset": None},
        {"more": 1},
        {"blocksize": ...},
        {"nested_offset": ...},
    ],
)
def test_hostile_states(tmp_path, change):
    fields = {k: v for k, v in (GOOD | change).items() if v is not ...}

    def write(tensors):
        tensors[STATE] = torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)

    with pytest.raises(FormatError, match=LAYER.replace(".", r"\.")):
        bitsandbytes.load(damaged(tmp_path, write))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 4000, b" " * 5000])
def test_states_that_are_no_json(tmp_path, content):
    def write(tensors):
        tensors[STATE] = torch.tensor(list(content), dtype=torch.uint8)

    with pytest.raises(FormatError, match="quant_state"):
        bitsandbytes.load(damaged(tmp_path, write))


def poison(part, value):
    def change(tensors):
        tensors[f"{LAYER}.weight.{part}"][0] = value

    return change


def cut(part):
    def change(tensors):
        name = f"{LAYER}.weight" + (f".{part}" if part else "")
        tensors[name] = tensors[name][:-1].clone()

    return change


def recast(part, dtype):
    def change(tensors):
        tensors[f"{LAYER}.weight.{part}"] = tensors[f"{LAYER}.weight.{part}"].to(dtype)

    return change


def drop(part):
    return lambda tensors: tensors.pop(f"{LAYER}.weight" + (f".{part}" if part else ""))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (cut(""), "bytes of codes for shape"),
        (cut("absmax"), "Expected"),
        (cut("nested_absmax"), "Expected"),
        (cut("nested_quant_map"), "Expected"),
        (cut("quant_map"), "quant_map is not that of nf4"),
        (poison("quant_map", 0.5), "quant_map is not that of nf4"),
        (poison("quant_map", float("nan")), "quant_map is not that of nf4"),
        (poison("nested_absmax", float("nan")), "NaN or infinity"),
        (poison("nested_quant_map", float("inf")), "NaN or infinity"),
        (recast("absmax", torch.float16), "Expected uint8"),
        (recast("nested_absmax", torch.float16), "float32"),
        (drop(""), "without a weight"),
        (drop("absmax"), "Needed"),
        (drop("nested_absmax"), "Needed"),
        (drop("quant_state.bitsandbytes__nf4"), "no layer with a quant_state"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, change, match):
    path = damaged(tmp_path, change)
    with pytest.raises(FormatError, match=match):
        bitsandbytes.load(path).layers[LAYER]


def test_config_that_disagrees(tmp_path):
    def refuse(match, settings, change=lambda tensors: None):
        with pytest.raises(FormatError, match=match):
            bitsandbytes.load(damaged(tmp_path, change, settings=settings))

    refuse("another quant type", {"bnb_4bit_quant_type": "fp4"})
    refuse("one of load_in_4bit and load_in_8bit", {"load_in_8bit": True})
    refuse("one of load_in_4bit and load_in_8bit", {"load_in_4bit": False})
    refuse("load_in_4bit is 'yes'", {"load_in_4bit": "yes"})
    refuse("no quantized layer", {"load_in_4bit": False, "load_in_8bit": True})
    refuse("quant_method", {"quant_method": "gptq"})

    def copy(tensors):
        tensors[STATE.replace("nf4", "fp4")] = tensors[STATE].clone()

    refuse("a second state", {}, copy)


def test_damaged_int8(tmp_path):
    def refuse(match, **tensors):
        path = tmp_path / "m"
        path.mkdir(exist_ok=True)
        good = {"weight": torch.ones(4, 8, dtype=torch.int8), "SCB": torch.ones(4)}
        parts = {f"a.{n}": t for n, t in (good | tensors).items() if t is not None}
        save_file(parts, path / "model.safetensors")
        settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (path / "config.json").write_text(json.dumps({"quantization_config": settings}))
        with pytest.raises(FormatError, match=match):
            bitsandbytes.load(path).layers["a"]

    refuse("3 scales", SCB=torch.ones(3))
    refuse("negative", SCB=-torch.ones(4))
    refuse("negative", SCB=torch.full((4,), float("nan")))
    refuse("float32", weight=torch.ones(4, 8))
    refuse("without a weight", weight=None)
    refuse("columns", weight_format=torch.tensor(2, dtype=torch.uint8))


def test_other_storage_dtypes_are_the_same_bytes(tmp_path):
    def restore(tensors):
        tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].reshape(-1).view(torch.bfloat16)

    path = damaged(tmp_path, restore)
    assert same(layer(double_quantization=True), bitsandbytes.load(path).layers[LAYER])


def test_the_config_is_what_transformers_writes(tmp_path):
    checkpoint = bare(layer(double_quantization=True))
    bitsandbytes.save(checkpoint, tmp_path / "m", compute_dtype="float16")
    written = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    theirs = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,
    ).to_dict()
    assert written == theirs | {"llm_int8_skip_modules": written["llm_int8_skip_modules"]}
