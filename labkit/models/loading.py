"""Load a causal LM: the bundled one, a local folder, or one of the Hugging Face hub by name.

Only a name that is neither a folder nor the default ever reaches for the network. Weights are
read from safetensors; pickle checkpoints are refused, and no code that comes with a model runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.errors import ModelError, OfflineError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = "reference-lm"


def bundled_folder() -> Path:
    """Where the bundled model lies: data/reference-lm beside the package."""
    return Path(__file__).resolve().parents[2] / "data" / BUNDLED


def model_name(name: str | None = None) -> str:
    """What `load(name)` will load: the argument, else $LABKIT_MODEL, else the bundled model."""
    return name or os.environ.get("LABKIT_MODEL") or BUNDLED


def load(
    name: str | None = None, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in evaluation mode (weights in `dtype`, on the GPU if there is one) and tokenizer.

    `name`: None for $LABKIT_MODEL or the bundled model, a folder in Hugging Face layout, or a hub
    name such as "Qwen/Qwen2.5-0.5B". A folder in one of `labkit.formats` comes as the model that
    computes in floating point with the dequantized weights.

    Raises ModelError for a folder without config or safetensors weights, FormatError for a
    quantized one that is damaged or contradicts itself, OfflineError for a hub model that is
    neither cached nor reachable.
    """
    import torch

    from labkit import formats

    wanted = model_name(name)
    folder = bundled_folder() if wanted == BUNDLED else Path(wanted).expanduser()
    local = folder.is_dir()
    if local:
        _check_folder(folder)
    elif wanted == BUNDLED or wanted.startswith((".", "/", "~")):
        raise ModelError(
            "no such folder",
            where=str(folder),
            remedy="Run `labkit train-reference` to rebuild the bundled model."
            if wanted == BUNDLED
            else "Give a folder in Hugging Face layout, or the name of a hub model.",
        )
    if local and formats.detect(folder):
        model, tokenizer = _from_quantized(folder, dtype)
    else:
        model, tokenizer = _from_transformers(str(folder) if local else wanted, dtype, local=local)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            "no config.json",
            where=str(folder),
            remedy="A model folder holds config.json, *.safetensors and a tokenizer.",
        )
    if not any(folder.glob("*.safetensors")):
        others = [path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"}]
        found = f"; {', '.join(sorted(others))} are pickles, which labkit never loads"
        raise ModelError(
            "no *.safetensors weights" + (found if others else ""),
            where=str(folder),
            remedy="Convert the checkpoint with model.save_pretrained(..., safe_serialization=True)"
            " on a machine that trusts it.",
        )


def _from_quantized(folder: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoTokenizer

    from labkit import formats
    from labkit.models.quantized import model_from

    model = _cast(model_from(formats.load(folder)), getattr(torch, dtype))
    try:
        return model, AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer: {error}", where=str(folder)) from error


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the parameters alone: rotary frequencies are buffers, and 8 bits of them turn far
    positions by whole radians."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _require_whole(source: str, found: dict[str, object]) -> None:
    """transformers fills tensors that a checkpoint lacks with random numbers; that is no model."""
    for what, key in (("lacks", "missing_keys"), ("has of another shape", "mismatched_keys")):
        names = sorted(map(str, found.get(key) or ()))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"the checkpoint {what} {', '.join(names[:3])}{more}",
                where=source,
                remedy="Fetch or convert it again; config.json and weights must belong together.",
            )


def _from_transformers(
    source: str, dtype: str, *, local: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hub_logging

    hub_logging.disable_progress_bar()  # it would stand in every notebook's output
    options = {
        "local_files_only": local or os.environ.get("HF_HUB_OFFLINE") == "1",
        "trust_remote_code": False,
    }
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, **options
        )
        _require_whole(source, found)
        # Converted here: the argument for it has another name in transformers 4 than in 5.
        model = _cast(model, getattr(torch, dtype))
        return model, AutoTokenizer.from_pretrained(source, **options)
    except SafetensorError as error:
        raise ModelError(
            f"damaged weights ({error})", where=source, remedy="Fetch it again."
        ) from error
    except OSError as error:
        if local:
            raise ModelError(str(error), where=source) from error
        raise OfflineError(
            f"neither a folder, nor cached, nor reachable on the hub ({error})",
            where=source,
            remedy="Check the name and the network, or leave the name out for the bundled model.",
        ) from error
