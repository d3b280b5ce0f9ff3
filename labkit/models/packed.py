"""Load a quantized model as it lies on the disk: layers hold the file's bytes, and nothing else.

`labkit.models.load` gives the same model in floating point, which is for study. This one is as
small as its file, and computes with the kernels of `labkit.kernels`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from labkit import formats
from labkit.core.errors import ModelError
from labkit.formats.gguf.reader import GgufFile
from labkit.models.freed import give_back
from labkit.models.from_gguf import write_tokenizer
from labkit.models.packed_build import build
from labkit.models.packed_gguf import gguf_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_packed(
    path: Path | str,
    *,
    activation_bits: Literal[16, 8] = 16,
    dtype: str = "float32",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Model in evaluation mode, on the GPU if there is one, and tokenizer (None if there is none).

    Linear layers are `labkit.nn.QuantLinear`, embeddings `labkit.nn.QuantEmbedding`: 16-bit ones
    too, which stay in 16 bits. What is left, such as norms, is in ``dtype``. Tensors are read one
    after another, so that memory holds the model once.

    Logits are those of `labkit.models.load` to within float32's rounding of sums, except where a
    bitsandbytes file says that weights were bfloat16 or float16 once: `load` rounds each
    dequantized weight to that, as bitsandbytes does, and a kernel does not.

    Args:
        path: a folder in one of `labkit.formats`, or a file that ends in .gguf.
        activation_bits: 8: layers whose type has such a kernel (4-bit integers, 8-bit ones by
            channel, on a CPU Q4_0, Q8_0, Q4_K, Q5_K and Q6_K) round their inputs to int8 first.
            What a checkpoint itself says of inputs (W8A8, FP8) is always done.
        dtype: of activations: "float32", "bfloat16" or "float16".

    Raises:
        ModelError: no such path, a dtype other than these, an architecture that labkit does not
            read, or a tokenizer that cannot be read.
        FormatError: damaged or hostile files, or nothing in the folder is quantized.
        SchemeError: 8 activation bits, and no layer that has a kernel for them.
    """
    path = Path(path).expanduser()
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}", remedy=f"Choose from {', '.join(DTYPES)}.")
    if path.suffix == ".gguf":
        with GgufFile(path) as file:
            model = build(gguf_checkpoint(file), DTYPES[dtype], activation_bits)
            tokenizer = _gguf_tokenizer(file)
    elif path.is_dir():
        model = build(formats.load(path), DTYPES[dtype], activation_bits)
        tokenizer = _tokenizer(path)
    else:
        raise ModelError(
            "no such folder, and no .gguf file",
            where=str(path),
            remedy="Give a folder that labkit quantized, or a GGUF file.",
        )
    give_back()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer: {error}", where=str(folder)) from error


def _gguf_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase | None:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(file, Path(folder))
        return _tokenizer(Path(folder))
