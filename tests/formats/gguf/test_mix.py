"""The type of each tensor: what llama_model_quantize chooses, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from labkit.core.errors import SchemeError
from labkit.formats.gguf.mix import FILE_TYPES, ModelFacts, choose_types, file_type
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.values import Value, f32, string, u32
from labkit.formats.gguf.writer import Declared, GgufWriter
from labkit.peers.llama_cpp import quantize_file

MIXES = [name for name in FILE_TYPES if name != "F32"]


@dataclass(frozen=True)
class Sketch:
    """Shapes of a model; its weights are ones, for the rule never looks at them."""

    architecture: str = "llama"
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 32
    feed_forward: int = 64
    tied: bool = False
    fused: bool = False
    vocabulary: int = 64

    def facts(self) -> ModelFacts:
        return ModelFacts(self.architecture, self.layers, self.heads, self.kv_heads)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        wide, narrow = self.hidden, self.hidden // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocabulary, wide)}
        for layer in range(self.layers):
            block = {
                "attn_norm.weight": (wide,),
                "attn_output.weight": (wide, wide),
                "ffn_norm.weight": (wide,),
                "ffn_gate.weight": (self.feed_forward, wide),
                "ffn_up.weight": (self.feed_forward, wide),
                "ffn_down.weight": (wide, self.feed_forward),
                "ffn_down.bias": (wide,),
            }
            if self.fused:
                block["attn_qkv.weight"] = (wide + 2 * narrow, wide)
                block["attn_qkv.bias"] = (wide + 2 * narrow,)
            else:
                block |= {f"attn_{which}.weight": (narrow, wide) for which in "kv"}
                block["attn_q.weight"] = (wide, wide)
            found |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
        found["output_norm.weight"] = (wide,)
        if self.architecture == "gpt2":
            found["position_embd.weight"] = (16, wide)
        if not self.tied:
            found["output.weight"] = (self.vocabulary, wide)
        return found

    def write(self, path: Path) -> None:
        shapes = self.shapes()
        keys: dict[str, Value] = {
            "context_length": u32(64),
            "embedding_length": u32(self.hidden),
            "block_count": u32(self.layers),
            "feed_forward_length": u32(self.feed_forward),
            "attention.head_count": u32(self.heads),
            "attention.head_count_kv": u32(self.kv_heads),
            "attention.layer_norm_rms_epsilon": f32(1e-5),
            "attention.layer_norm_epsilon": f32(1e-5),
        }
        metadata = {"general.architecture": string(self.architecture)}
        metadata |= {f"{self.architecture}.{key}": value for key, value in keys.items()}
        declared = [Declared(name, shape, "F32") for name, shape in shapes.items()]
        with GgufWriter(path, metadata, declared) as writer:
            for name, shape in shapes.items():
                writer.write(name, np.ones((1, *shape), np.float32))


def types_in(path: Path) -> dict[str, str]:
    with GgufFile(path) as file:
        return {name: info.type_name for name, info in file.tensors.items()}


SKETCHES = {
    "gpt2, whole rows, tied": Sketch("gpt2", hidden=256, feed_forward=256, tied=True, fused=True),
    "grouped by four": Sketch(layers=9, heads=8, kv_heads=2),
    "one value head": Sketch(layers=16, heads=4, kv_heads=1, tied=True),
    "17 layers": Sketch(layers=17, heads=4, kv_heads=2),
    "32 layers": Sketch(layers=32),
    "a 70B model's layers": Sketch(layers=80, heads=8, kv_heads=1),
    "a 65B model's layers": Sketch(layers=80, heads=4, kv_heads=4),
    "qwen2 of 80 layers": Sketch("qwen2", layers=80, heads=4, kv_heads=4),
    "rows of 288 and 544": Sketch(layers=4, hidden=288, feed_forward=544, vocabulary=40),
    "rows of 40 and 100": Sketch(layers=4, hidden=40, feed_forward=100),
    "rows of 256 and 96": Sketch(layers=4, hidden=256, feed_forward=96),
}


@pytest.mark.parametrize("name", SKETCHES)
def test_types_are_those_that_llama_cpp_chooses(name: str, tmp_path: Path) -> None:
    sketch = SKETCHES[name]
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    sketch.write(source)
    for mix in MIXES:
        quantize_file(source, out, FILE_TYPES[mix].number)
        ours = choose_types(sketch.shapes(), mix, sketch.facts())
        assert {n: c.type_name for n, c in ours.items()} == types_in(out), mix


@pytest.mark.parametrize("mix", ["Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_K_M"])
def test_with_an_importance_matrix(mix: str, tmp_path: Path) -> None:
    sketch = Sketch(layers=17, heads=4, kv_heads=2)
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    sketch.write(source)
    matter = {"blk.0.ffn_down.weight": np.ones(64, np.float32)}
    quantize_file(source, out, FILE_TYPES[mix].number, importance=matter)
    ours = choose_types(sketch.shapes(), mix, sketch.facts(), importance=True)
    assert {n: c.type_name for n, c in ours.items()} == types_in(out)


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q2_K", "Q8_0", "MXFP4_MOE", "IQ4_XS"])
@pytest.mark.parametrize("hidden", [32, 40, 256])
def test_pure_is_one_type_for_every_matrix(mix: str, hidden: int, tmp_path: Path) -> None:
    sketch = Sketch(hidden=hidden)
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    sketch.write(source)
    quantize_file(source, out, FILE_TYPES[mix].number, pure=True)
    ours = choose_types(sketch.shapes(), mix, sketch.facts(), pure=True)
    assert {n: c.type_name for n, c in ours.items()} == types_in(out)


def test_a_fall_back_says_why() -> None:
    shapes = {"blk.0.attn_q.weight": (40, 40), "blk.0.ffn_up.weight": (40, 96)}
    choices = choose_types(shapes, "Q4_K_S", ModelFacts("llama", 1, 4, 4))
    assert choices["blk.0.attn_q.weight"].type_name == "F16"
    assert "multiple of 256" in choices["blk.0.attn_q.weight"].reason
    assert "40" in choices["blk.0.attn_q.weight"].reason
    assert choices["blk.0.ffn_up.weight"].type_name == "Q5_0"
    assert "96" in choices["blk.0.ffn_up.weight"].reason


def test_what_the_mix_chose_itself_is_no_fall_back() -> None:
    sketch = Sketch(hidden=256, feed_forward=256)
    assert not any(
        choice.reason for choice in choose_types(sketch.shapes(), "Q4_K_M", sketch.facts()).values()
    )


def test_the_order_of_tensors_does_not_matter() -> None:
    sketch = Sketch(layers=12)
    shapes = sketch.shapes()
    backwards = dict(reversed(shapes.items()))
    assert choose_types(shapes, "Q4_K_M", sketch.facts()) == choose_types(
        backwards, "Q4_K_M", sketch.facts()
    )


def test_short_names_are_those_of_llama_quantize() -> None:
    assert file_type("q4_k") == "Q4_K_M"
    assert file_type("Q3_K") == "Q3_K_M"
    assert file_type("bf16") == "BF16"
    with pytest.raises(SchemeError, match="Q4_K_M"):
        file_type("Q4_K_XXL")
