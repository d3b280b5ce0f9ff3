"""Settings there and back, and whatever a hostile file may say."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from tiny_models import FAMILIES, tiny

from labkit.core.errors import LabkitError, ModelError
from labkit.formats.gguf.names import naming_of
from labkit.formats.gguf.rope import Rope, llama3_factors, rope_of
from labkit.formats.gguf.settings import setting_values, settings_of
from labkit.formats.gguf.settings_reading import Source, config_of

RUN = [family for family in FAMILIES if family not in ("opt", "llama_gqa_tied", "mistral")]
# Said in another way, or by the tensors, or without a meaning where RoPE is not scaled.
_OTHERWISE = (
    "tie_word_embeddings",
    "hidden_act",
    "hidden_activation",
    "architectures",
    "sliding_window",
    "original_max_position_embeddings",
)
HOSTILE = [
    None, "", "x" * 1000, -1, 0, 1, 2**31, 2**63, -(2**63), 1e300, float("nan"), float("inf"),
    True, [], [1, 2], ["a"], [True] * 5, "yarn", "longrope",
]  # fmt: skip


def described(family: str) -> tuple[Any, Source]:
    """A tiny model's config, and what a GGUF file would say of it."""
    model = tiny(family)
    config = model.config.to_dict()
    naming = naming_of(config["model_type"])
    values, _ = setting_values(config, settings_of(config), naming)
    shapes = {}
    for name, parameter in model.named_parameters():
        ours = naming.to_gguf(name)
        turned = naming.change(ours) == "transpose"
        shapes[ours] = tuple(parameter.shape)[:: -1 if turned else 1]
    metadata = {key: value.value for key, value in values.items()}
    source = Source(metadata, shapes, naming.architecture, family, lambda name: np.ones(8))
    return config, source


@pytest.mark.parametrize("family", RUN)
def test_what_matters_comes_back(family: str) -> None:
    config, source = described(family)
    back = config_of(source, naming_of(config["model_type"]))
    said = {
        key: value
        for key, value in back.items()
        if key not in ("torch_dtype", "rope_theta", "rope_local_base_freq", "rotary_emb_base")
        and key in config
    }
    assert len(said) >= 10
    for key, value in said.items():
        if key in _OTHERWISE or (key == "layer_types" and "sliding_window_pattern" in config):
            continue
        assert config[key] == value or config[key] == pytest.approx(value), key


@pytest.mark.parametrize("family", RUN)
def test_whatever_a_file_says_is_read_or_refused(family: str) -> None:
    config, source = described(family)
    naming = naming_of(config["model_type"])
    extra = ["rope.scaling.type", "rope.scaling.factor", "attention.sliding_window_pattern"]
    keys = [*source.metadata, *(f"{naming.architecture}.{key}" for key in extra)]
    refused = 0
    for key in keys:
        for value in HOSTILE:
            metadata = copy.copy(source.metadata)
            metadata[key] = value
            changed = Source(metadata, source.shapes, source.architecture, family, source.read)
            try:
                config_of(changed, naming)
            except LabkitError:
                refused += 1
    assert refused > 50


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight"])
@pytest.mark.parametrize("content", [[], [1.0], [0.0] * 8, [float("nan")] * 8, [-1.0] * 8])
def test_strange_factors_are_refused_or_kept(name: str, content: list[float]) -> None:
    _, source = described("llama")
    shapes = {**source.shapes, name: (len(content),)}
    values = np.array(content, np.float32)
    changed = Source(source.metadata, shapes, "llama", "file", lambda _: values)
    with pytest.raises(LabkitError):
        config_of(changed, naming_of("llama"))


def test_both_ways_of_saying_rope() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert rope_of(old) == rope_of(new) == Rope(5e5, None, "linear", {"factor": 2.0})
    gemma_old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    gemma_new = {
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        }
    }
    assert rope_of(gemma_old) == rope_of(gemma_new) == Rope(1e6, 1e4)
    assert rope_of({}) == Rope(10000.0)


@pytest.mark.parametrize("key", ["beta_fast", "beta_slow", "mscale", "attention_factor"])
def test_yarn_that_llama_cpp_does_not_compute_is_refused(key: str) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, key: 0.7}
    with pytest.raises(ModelError, match=key):
        rope_of({"rope_theta": 1e4, "rope_scaling": scaling})


def test_llama3_factors_are_transformers_own() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, rope_theta=5e5, rope_scaling=scaling,
        max_position_embeddings=131072,
    )  # fmt: skip
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(np.arange(0, 128, 2) / 128)
    ours = llama3_factors(Rope(5e5, None, "llama3", scaling), 128)
    np.testing.assert_allclose(plain / theirs.numpy(), ours, rtol=1e-5)
    assert ours.min() == 1.0 and ours.max() == 8.0
