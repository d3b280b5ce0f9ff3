"""From nothing to a bundled model: tokenizer, training, export, card."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from labkit.core.errors import ModelError
from labkit.training.reference.card import write_card
from labkit.training.reference.export import export
from labkit.training.reference.loop import Log, train
from labkit.training.reference.recipe import Recipe
from labkit.training.reference.tokenizer import train_tokenizer


def train_reference(
    recipe: Recipe, out: Path, checkpoints: Path, log: Log, compile_model: bool = True
) -> None:
    """Train (or go on training) and write the Hugging Face folder `out` with its card.

    Raises ModelError when `checkpoints` belongs to another recipe; what `train` raises.
    """
    marker = checkpoints / "recipe.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") != recipe.as_json():
        raise ModelError(
            "the checkpoints there were made by another recipe",
            where=str(checkpoints),
            remedy="Name another folder with --checkpoints, or delete this one.",
        )
    checkpoints.mkdir(parents=True, exist_ok=True)
    marker.write_text(recipe.as_json(), encoding="utf-8")
    tokenizer = _tokenizer(recipe, checkpoints / "tokenizer")
    model, history = train(recipe, tokenizer, checkpoints, log, compile_model)
    export(model, tokenizer, out)
    write_card(model, tokenizer, recipe, history, out)


def _tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerFast:
    """Trained once for a run, and kept beside its checkpoints."""
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = train_tokenizer(recipe.architecture.vocab_size)
    tokenizer.save_pretrained(folder)
    return tokenizer
