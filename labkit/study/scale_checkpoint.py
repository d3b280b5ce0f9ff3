"""A checkpoint of random weights with the real shapes of a published model, shard by shard.

What quantizing costs does not depend on what the weights say, so a random 7B tells the time and the
memory of any 7B. float16, as such models are published; the matrices are N(0, 0.02²), norms are 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.errors import StorageError
from labkit.core.model_shapes import ModelShape

if TYPE_CHECKING:
    from torch import Tensor

_SLACK = 2**28  # for what is small: headers, config.json, the report


def write_random(
    folder: Path, shape: ModelShape, tell: Callable[[str], None], shard_bytes: int = 2**28
) -> int:
    """Write config.json and the shards into `folder`, which is made; return their bytes.

    No more than a shard is in memory.

    Raises StorageError when the disk is full; nothing is left.
    """
    from labkit.formats.checkpoint import write_shards
    from labkit.formats.writing import folder_aside, write_json

    with folder_aside(folder) as aside:
        write_json(aside / "config.json", config_of(shape))
        write_shards(aside, _tensors(shape, tell), shard_bytes)
    return sum(path.stat().st_size for path in folder.iterdir())


def config_of(shape: ModelShape) -> dict[str, object]:
    """config.json of a Llama of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "float16",
    }


def require_room(folder: Path, nbytes: int) -> None:
    """Return if the disk of `folder` has `nbytes` free and some to spare.

    Raises StorageError: what would be found after minutes is said at once.
    """
    needed, free = nbytes + _SLACK, shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{needed / 1e9:.1f} GB are needed, and {free / 1e9:.1f} are free",
            where=str(folder),
            remedy="Name a work folder on another disk, or write fewer blocks with --layers.",
        )


def _tensors(shape: ModelShape, tell: Callable[[str], None]) -> Iterator[tuple[str, Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, sides in tensor_shapes(shape).items():
        if name.endswith("input_layernorm.weight"):
            tell(f"writing block {name.split('.')[2]} of {shape.layers}")
        if len(sides) == 1:
            yield name, torch.ones(sides, dtype=torch.float16)
        else:
            yield name, (torch.randn(sides, generator=generator) * 0.02).to(torch.float16)


def tensor_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama by its name in Hugging Face files, in the order of the model."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.hidden)}
    for index in range(shape.layers):
        block = f"model.layers.{index}"
        found |= {
            f"{block}.input_layernorm.weight": (shape.hidden,),
            f"{block}.self_attn.q_proj.weight": (queries, shape.hidden),
            f"{block}.self_attn.k_proj.weight": (keys, shape.hidden),
            f"{block}.self_attn.v_proj.weight": (keys, shape.hidden),
            f"{block}.self_attn.o_proj.weight": (shape.hidden, queries),
            f"{block}.post_attention_layernorm.weight": (shape.hidden,),
            f"{block}.mlp.gate_proj.weight": (shape.ffn, shape.hidden),
            f"{block}.mlp.up_proj.weight": (shape.ffn, shape.hidden),
            f"{block}.mlp.down_proj.weight": (shape.hidden, shape.ffn),
        }
    found["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        found["lm_head.weight"] = (shape.vocab, shape.hidden)
    return found
