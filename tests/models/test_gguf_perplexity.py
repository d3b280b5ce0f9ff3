"""The same quantized weights in llama.cpp and in torch: perplexity, and where the rest comes from.

llama.cpp rounds the inputs of quantized layers to 8 bits. With the weights decoded into a file of
floats it does not, and the two programs agree to the last digits; with torch's inputs rounded in
the same way, they agree about the quantized file too.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny, tokens

from labkit.core.errors import ModelError, SchemeError
from labkit.data import load_corpus
from labkit.evaluate.perplexity import perplexity
from labkit.models.gguf_inputs import llama_cpp_inputs, rounded_input
from labkit.models.gguf_model import through_gguf
from labkit.models.loading import load
from labkit.models.to_gguf import to_gguf
from labkit.peers.llama_cpp import LlamaCpp

CONTEXT = 256


@functools.cache
def bundled():
    """(model, tokenizer, held-out text, its token ids), read once."""
    model, tokenizer = load()
    text = load_corpus("stdlib-code", "heldout").text
    return (
        model,
        tokenizer,
        text,
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
    )


def measured(mix: str, count: int, folder: Path) -> dict[str, float]:
    """Perplexities of the bundled model on `count` tokens, by who computes it of what."""
    model, tokenizer, text, ids = bundled()
    ids = [tokenizer.bos_token_id, *ids[:count]]
    changed, _ = through_gguf(model, mix)
    quantized = to_gguf((model, None), folder / "quantized.gguf", mix).path
    decoded = to_gguf((changed, None), folder / "decoded.gguf", "F32").path
    found = {"torch": perplexity(changed, tokenizer, text, CONTEXT, max_tokens=count).value}
    with llama_cpp_inputs(changed, quantized):
        value = perplexity(changed, tokenizer, text, CONTEXT, max_tokens=count).value
        found["torch, inputs rounded"] = value
    for name, path in (("llama.cpp, decoded", decoded), ("llama.cpp", quantized)):
        with LlamaCpp(path, CONTEXT) as llama:
            result = llama.perplexity(ids, CONTEXT)
            assert (result.tokens, result.context, result.stride) == (count, CONTEXT, CONTEXT)
            found[name] = result.value
    return found


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q2_K"])
def test_the_same_weights_have_the_same_perplexity(mix: str, tmp_path: Path) -> None:
    found = measured(mix, 1536, tmp_path)
    assert found["llama.cpp, decoded"] == pytest.approx(found["torch"], rel=1e-5)
    # So short a text leaves the noise of rounded inputs; the slow test has a longer one.
    assert found["llama.cpp"] == pytest.approx(found["torch"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mix",
    ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K"],
)
def test_within_a_thousandth_on_a_long_text(mix: str, tmp_path: Path) -> None:
    found = measured(mix, 16384, tmp_path)
    assert found["llama.cpp, decoded"] == pytest.approx(found["torch"], rel=1e-5)
    assert found["llama.cpp"] == pytest.approx(found["torch, inputs rounded"], rel=1e-3)
    assert found["llama.cpp"] == pytest.approx(found["torch"], rel=4e-3)


# Q4_1 and Q5_1 keep the sum of a block of inputs apart, in float16, for their minimum: that is not
# a matter of the inputs alone, and stays out.
@pytest.mark.parametrize(
    "mix",
    ["BF16", "Q8_0", "Q5_0", "Q4_0", "MXFP4_MOE", "IQ4_NL", "IQ4_XS", "Q6_K", "Q4_K_S", "Q2_K"],
)
@torch.no_grad()
def test_rounded_inputs_explain_what_llama_cpp_computes(mix: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    model = tiny("llama", **sizes)
    path = to_gguf((model, None), tmp_path / "model.gguf", mix, pure=True).path
    from labkit.models.from_gguf import weights_of

    parameters = dict(model.named_parameters())
    for name, weight in weights_of(path):
        parameters[name].copy_(weight)
    ids = tokens(1, 48)
    plain = model(ids).logits[0].numpy()
    with llama_cpp_inputs(model, path):
        rounded = model(ids).logits[0].numpy()
    with LlamaCpp(path, 256) as llama:
        theirs = llama.logits(ids[0].tolist())
    # A value on the edge may be rounded the other way: most of the difference must be gone.
    assert _spread(theirs - rounded) < 0.2 * _spread(theirs - plain)
    assert np.array_equal(model(ids).logits[0].numpy(), plain)  # the hooks are gone


def _spread(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


@pytest.mark.parametrize(("type_name", "size"), [("Q4_0", 32), ("Q4_K", 256)])
def test_rounding_is_within_half_a_step_of_each_block(type_name: str, size: int) -> None:
    x = torch.randn(5, 2 * size, generator=torch.Generator().manual_seed(0))
    x[0, :size] = 0.0
    blocks = x.unflatten(-1, (-1, size))
    error = (rounded_input(x, type_name) - x).unflatten(-1, (-1, size)).abs().amax(-1)
    # float16 scales add a part in 2048 of the value
    step = blocks.abs().amax(-1) / 127
    assert (error <= step * (0.5 + 127 / 2048)).all()
    assert (rounded_input(x, type_name)[0, :size] == 0).all()


def test_floats_are_cast_and_unknown_types_refused() -> None:
    x = torch.tensor([[1.0 + 2**-12, 3.0]])
    assert torch.equal(rounded_input(x, "F32"), x)
    assert torch.equal(rounded_input(x, "F16"), torch.tensor([[1.0, 3.0]]))
    with pytest.raises(SchemeError, match="Q9"):
        rounded_input(x, "Q9")


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    path = to_gguf((tiny("llama"), None), tmp_path / "model.gguf", "F32").path
    deeper = tiny("llama", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"blk\.2\."), llama_cpp_inputs(deeper, path):
        pass
    assert not any(module._forward_pre_hooks for module in deeper.modules())


def test_speed_is_a_number_and_a_closed_peer_can_be_closed_again(tmp_path: Path) -> None:
    path = to_gguf((tiny("llama"), None), tmp_path / "model.gguf", "Q8_0").path
    llama = LlamaCpp(path, 256)
    assert llama.tokens_per_second([1, 2, 3], 4) > 0
    llama.close()
    llama.close()
