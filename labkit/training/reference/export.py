"""Write a trained model as a Hugging Face folder: whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.formats.tokenizer_files import save_tokenizer


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save bfloat16 safetensors, config and tokenizer under `folder`, replacing what was there.

    Everything is written beside the target first; files that are not the model's (the card) stay.
    """
    aside = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(aside, safe_serialization=True)
    save_tokenizer(tokenizer, aside)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(aside.iterdir()):
        os.replace(path, folder / path.name)
    aside.rmdir()
