"""The decoder beside transformers: the same logits, the same greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny

from labkit.core.errors import ModelError, NonFiniteError, SchemeError, ShapeError
from labkit.models import load
from labkit.models.decode import decode
from labkit.models.decoder import decoder_from_gguf, decoder_from_model
from labkit.models.gguf_model import through_gguf
from labkit.models.packed import load_packed
from labkit.models.to_gguf import to_gguf

_IDS = list(range(5, 45))
# The cache holds keys and values in float16, which has 11 digits.
_HALF = 2**-9
_SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2}


def _sized(family: str) -> torch.nn.Module:
    return tiny(family, **_SIZES, **({"head_dim": 64} if family == "qwen3" else {}))


def _logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("family", ["llama", "llama_gqa_tied", "mistral", "qwen2", "qwen3"])
def test_logits_are_those_of_transformers(family) -> None:
    model = tiny(family)  # Mistral's window is 8 tokens
    with torch.no_grad():
        exact = _logits(model, _IDS)
    decoder = decoder_from_model(model, threads=2)
    found = decoder.forward(_IDS, every=True)
    assert np.abs(found - exact).max() < _HALF * np.abs(exact).max()
    # Token by token, from a cache that was cut back, on one thread: the same.
    decoder.reset(30)
    decoder.close()
    alone = np.stack([decoder.forward([token]) for token in _IDS[30:]])
    assert np.abs(alone - found[30:]).max() < _HALF * np.abs(exact).max()
    assert decoder.length == len(_IDS)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q4_K_S", "Q4_K_M", "BF16"])
def test_a_gguf_file_gives_the_logits_of_its_weights(type_name, tmp_path) -> None:
    family = "qwen3" if type_name == "Q4_0" else "llama"
    model = _sized(family)
    to_gguf((model, None), tmp_path / "m.gguf", type_name)
    packed, _ = through_gguf(model, type_name)
    with torch.no_grad():
        exact = _logits(packed, _IDS)
    spread = np.abs(exact).max()
    wide = decoder_from_gguf(tmp_path / "m.gguf", activation_bits=16)
    assert np.abs(wide.forward(_IDS, every=True) - exact).max() < _HALF * spread
    eight = decoder_from_gguf(tmp_path / "m.gguf", activation_bits=8)
    assert np.abs(eight.forward(_IDS, every=True) - exact).max() < 0.05 * spread
    size = (tmp_path / "m.gguf").stat().st_size
    assert eight.weight_nbytes <= size


def test_the_bundled_model_writes_the_tokens_of_generate(tmp_path) -> None:
    model, tokenizer = load()
    prompt = "The function returns a list of"
    ids = tokenizer(prompt)["input_ids"]
    wanted = _generated(model, ids, 20)
    decoder = decoder_from_model(model, capacity=256)
    assert decode(decoder, ids, 20, stop=_ends(model)).tokens == wanted
    assert decode(model, ids, 20).tokens == wanted
    # The same from a file of 4 bits, with float activations as the peer has them.
    to_gguf((model, tokenizer), tmp_path / "m.gguf", "Q4_0", pure=True)
    from labkit.models.from_gguf import weights_of

    state = dict(weights_of(tmp_path / "m.gguf"))
    for name, parameter in model.named_parameters():
        parameter.data.copy_(state[name])
    file = decoder_from_gguf(tmp_path / "m.gguf", capacity=256, activation_bits=16)
    found = decode(file, ids, 20, stop=_ends(model))
    assert found.tokens == _generated(model, ids, 20) != wanted
    assert found.cache_nbytes == file.cache_nbytes


def _generated(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    return out[0, len(ids) :].tolist()


def _ends(model: torch.nn.Module) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else ends


def test_a_long_prompt_goes_in_parts_and_gives_the_last_logits() -> None:
    decoder = decoder_from_model(tiny("llama", max_position_embeddings=200))
    ids = [(7 * place) % 128 for place in range(150)]
    whole = decoder.forward(ids, every=True)
    assert whole.shape == (150, 128)
    decoder.reset()
    assert np.array_equal(decoder.forward(ids), whole[-1])


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    decoder = decoder_from_model(tiny("llama"), capacity=8)
    for ids in ([], [1] * 9, [128], [-1]):
        with pytest.raises(ShapeError):
            decoder.forward(ids)
    with pytest.raises(ShapeError):
        decoder.reset(1)
    with pytest.raises(ModelError, match="gpt2"):
        decoder_from_model(tiny("gpt2"))
    with pytest.raises(ModelError, match="multiples of 16"):
        decoder_from_model(tiny("llama", intermediate_size=72))
    to_gguf((tiny("llama"), None), tmp_path / "m.gguf", "Q5_0")
    with pytest.raises(SchemeError, match="Q5_0"):
        decoder_from_gguf(tmp_path / "m.gguf")
    model = tiny("llama")
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.model.layers[0].mlp.up_proj)
    with pytest.raises(ModelError, match="Sequential"):
        decoder_from_model(model)


@pytest.mark.parametrize("bits", [16, 8])
def test_an_overflow_is_said(bits, tmp_path) -> None:
    model = _sized("llama")
    model.model.layers[1].mlp.down_proj.weight.mul_(1e38)
    model.model.layers[1].mlp.up_proj.weight.mul_(1e30)
    to_gguf((model, None), tmp_path / "m.gguf", "F32")
    decoder = decoder_from_gguf(tmp_path / "m.gguf", activation_bits=bits)
    with pytest.raises(NonFiniteError):
        decoder.forward(_IDS)
    assert decoder.length == 0


def test_a_packed_model_of_transformers_writes_the_same_tokens(tmp_path) -> None:
    to_gguf((_sized("llama"), None), tmp_path / "m.gguf", "Q4_K_S")
    model, _ = load_packed(tmp_path / "m.gguf")
    decoder = decoder_from_gguf(tmp_path / "m.gguf", activation_bits=16)
    assert decode(model, _IDS[:9], 8, "fp16").tokens == decode(decoder, _IDS[:9], 8).tokens
