"""The model card: figures in card.json, and the README.md and curve.png made from them alone."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.data.corpora import BUNDLED, SPLITS, load_corpus
from labkit.data.tasks import TASKS
from labkit.evaluate.perplexity import perplexity
from labkit.evaluate.provenance import made_with
from labkit.evaluate.size import parameter_count
from labkit.evaluate.tasks import task_accuracy
from labkit.training.reference.card_text import curve, render
from labkit.training.reference.recipe import Recipe

QUESTIONS = 500
TOKENS = 32768


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """Held-out perplexity at two contexts, and the four tasks with their 95 % intervals."""
    model.eval()
    losses = {
        f"{name} at context {context}": round(
            perplexity(
                model, tokenizer, load_corpus(name, "heldout").text, context, max_tokens=TOKENS
            ).value,
            3,
        )
        for name in BUNDLED
        for context in (256, 512)
    }
    tasks = {}
    for name in TASKS:
        result = task_accuracy(model, tokenizer, name, QUESTIONS)
        tasks[name] = {
            "correct": result.correct,
            "total": result.total,
            "interval": [round(bound, 4) for bound in result.interval],
            "by_kind": result.by_kind,
        }
    return {"perplexity": losses, "tokens_scored": TOKENS, "tasks": tasks}


def write_card(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    history: list[dict[str, object]],
    folder: Path,
) -> None:
    """Measure the model as it was saved (bfloat16 weights) and write card, README and curve."""
    saved = LlamaForCausalLM.from_pretrained(folder, use_safetensors=True).float()
    card = {
        "command": "labkit train-reference",
        "made_with": made_with(),
        "parameters": parameter_count(model),
        "tokens": recipe.tokens,
        "recipe": json.loads(recipe.as_json()),
        "corpora": {name: {split: _describe(name, split) for split in SPLITS} for name in BUNDLED},
        "measured": measure(saved, tokenizer),
        "history": history,
        "notes": [],  # what a reader must know of this run, and the recipe does not say
    }
    text = json.dumps(card, indent=1) + "\n"
    (folder / "card.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(render(card), encoding="utf-8")
    curve(card).savefig(folder / "curve.png", dpi=100)


def _describe(name: str, split: str) -> dict[str, object]:
    corpus = load_corpus(name, split)
    return {
        "sha256": corpus.sha256,
        "documents": len(corpus.documents),
        "characters": len(corpus.text),
    }
