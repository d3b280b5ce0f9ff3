"""A model with the weights that a GGUF file would give it: what the file costs in quality."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from labkit.formats.gguf.imatrix import ImportanceMatrix
from labkit.models.from_gguf import weights_of
from labkit.models.gguf_report import Conversion
from labkit.models.to_gguf import to_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def through_gguf(
    model: PreTrainedModel,
    type_name: str,
    importance: ImportanceMatrix | None = None,
) -> tuple[PreTrainedModel, Conversion]:
    """Write ``model`` as a temporary GGUF file; return a copy with its weights, and a report.

    The copy computes in floating point with exactly what llama.cpp decodes from the file; unlike
    llama.cpp it does not round activations. Raises what `labkit.models.to_gguf.to_gguf` raises.
    """
    changed = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        conversion = to_gguf((model, None), path, type_name, importance)
        parameters = dict(changed.named_parameters())
        for name, weight in weights_of(path):
            if name not in parameters:  # GPT-NeoX's head changed its name in transformers 5
                parameters[name] = changed.get_output_embeddings().weight
            parameters[name].copy_(weight)
    return changed, conversion
