"""Shapes of published language models, and the parameter count that follows from each.

Numbers are those of the ``config.json`` of ``repo`` on the Hugging Face hub, and
``published_parameters`` is the hub's own count ("Model size", from the safetensors headers). For
Llama 2 that includes a buffer of rotary frequencies a layer (``head_dim / 2`` numbers), no
parameters: ``published_buffers``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the Llama kind: RMSNorm, attention with grouped queries, gated MLP.

    ``heads`` counts the query heads; ``kv_heads`` the key and value heads, fewer where several
    queries share one (grouped-query attention). ``tied`` means that the output projection is the
    embedding matrix. ``qkv_bias`` means that the query, key and value projections have a bias.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    repo: str = ""
    published_parameters: int = 0
    published_buffers: int = 0

    @property
    def embedding_parameters(self) -> int:
        """Input embedding, and the output projection where it is a matrix of its own."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """Weight matrices of the decoder layers: what quantizers quantize."""
        queries, keys_values = self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        attention = self.hidden * (queries + keys_values) + queries * self.hidden
        mlp = 3 * self.hidden * self.ffn
        return self.layers * (attention + mlp)

    @property
    def vector_parameters(self) -> int:
        """Norm weights (two a layer and a last one) and biases."""
        norms = (2 * self.layers + 1) * self.hidden
        biases = self.layers * (self.heads + 2 * self.kv_heads) * self.head_dim
        return norms + (biases if self.qkv_bias else 0)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.embedding_parameters + self.linear_parameters + self.vector_parameters


# fmt: off
_ROWS = (
    #           name         layers hidden   ffn heads kv head_dim vocab   tied  qkv_bias
    ModelShape("llama-2-7b",     32,  4096, 11008, 32, 32, 128,  32000, False, False,
               "meta-llama/Llama-2-7b-hf", 6_738_417_664, published_buffers=32 * 64),
    ModelShape("llama-2-13b",    40,  5120, 13824, 40, 40, 128,  32000, False, False,
               "meta-llama/Llama-2-13b-hf", 13_015_866_880, published_buffers=40 * 64),
    ModelShape("llama-2-70b",    80,  8192, 28672, 64,  8, 128,  32000, False, False,
               "meta-llama/Llama-2-70b-hf", 68_976_653_312, published_buffers=80 * 64),
    ModelShape("llama-3-8b",     32,  4096, 14336, 32,  8, 128, 128256, False, False,
               "meta-llama/Meta-Llama-3-8B", 8_030_261_248),
    ModelShape("llama-3.2-3b",   28,  3072,  8192, 24,  8, 128, 128256, True, False,
               "meta-llama/Llama-3.2-3B", 3_212_749_824),
    ModelShape("mistral-7b",     32,  4096, 14336, 32,  8, 128,  32768, False, False,
               "mistralai/Mistral-7B-v0.3", 7_248_023_552),
    ModelShape("qwen2.5-0.5b",   24,   896,  4864, 14,  2,  64, 151936, True, True,
               "Qwen/Qwen2.5-0.5B", 494_032_768),
    ModelShape("qwen2.5-3b",     36,  2048, 11008, 16,  2, 128, 151936, True, True,
               "Qwen/Qwen2.5-3B", 3_085_938_688),
    ModelShape("qwen2.5-7b",     28,  3584, 18944, 28,  4, 128, 152064, False, True,
               "Qwen/Qwen2.5-7B", 7_615_616_512),
    ModelShape("qwen2.5-72b",    80,  8192, 29568, 64,  8, 128, 152064, False, True,
               "Qwen/Qwen2.5-72B", 72_706_203_648),
)
# fmt: on

MODEL_SHAPES: dict[str, ModelShape] = {shape.name: shape for shape in _ROWS}
