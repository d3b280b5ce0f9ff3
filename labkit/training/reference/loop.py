"""The training loop of the bundled model: resumes where it was killed, logs what it measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.core.errors import NonFiniteError
from labkit.data.corpora import BUNDLED, load_corpus
from labkit.data.tasks import TASKS
from labkit.evaluate.perplexity import perplexity
from labkit.evaluate.tasks import task_accuracy
from labkit.training.reference.checkpoint import load_checkpoint, save_checkpoint
from labkit.training.reference.mixture import Batch, Mixture
from labkit.training.reference.optimizer import build_optimizers, set_lr
from labkit.training.reference.recipe import Recipe

LOG_EVERY = 50
EVALUATE_EVERY = 400
SAVE_EVERY = 200

Log = Callable[[dict[str, object]], None]


def build_model(recipe: Recipe, bos: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings, initialised from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    sizes = vars(recipe.architecture)
    config = LlamaConfig(
        **sizes,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=bos,
        eos_token_id=bos,
        pad_token_id=bos,
        attention_bias=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def _loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy; the forward pass runs in bfloat16, the weights stay float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits
    nll = functional.cross_entropy(
        logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights.flatten()
    return (nll * weights).sum() / weights.sum()


def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: int = 100
) -> dict[str, object]:
    """Held-out perplexity on 8 k tokens of each domain and the four tasks."""
    model.eval()
    row: dict[str, object] = {}
    for name in BUNDLED:
        text = load_corpus(name, "heldout").text
        row[name] = round(perplexity(model, tokenizer, text, 256, max_tokens=8192).value, 3)
    for name in TASKS:
        result = task_accuracy(model, tokenizer, name, questions, seed=1)
        row[name] = round(result.accuracy, 3)
        if name == "doctest":
            row["doctest kinds"] = {k: round(a / b, 2) for k, (a, b) in result.by_kind.items()}
    model.train()
    return row


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    log: Log,
    compile_model: bool = True,
) -> tuple[LlamaForCausalLM, list[dict[str, object]]]:
    """Train to the recipe's last step and return the model and its history.

    Checkpoints go to `folder`; a second call continues from the last one with the same batches.
    Raises NonFiniteError when the loss is no longer a number.
    """
    model = build_model(recipe, tokenizer.bos_token_id)
    optimizers = build_optimizers(model, recipe)
    step, history = load_checkpoint(folder, model, optimizers)
    mixture = Mixture(tokenizer, recipe)
    forward = torch.compile(model, dynamic=False) if compile_model else model
    model.train()
    began, seen, losses = time.perf_counter(), 0, []
    while step < recipe.steps:
        batch = mixture.batch(step)
        set_lr(optimizers, recipe, step)
        loss = _loss(forward, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + batch.weights.numel()
        losses.append(loss.item())
        if losses[-1] != losses[-1]:
            raise NonFiniteError(
                f"training loss is NaN at step {step}; the last checkpoint in {folder} is sound: "
                "lower muon_lr in the recipe and run again"
            )
        if step % LOG_EVERY == 0 or step == recipe.steps:
            speed = seen / (time.perf_counter() - began)
            row: dict[str, object] = {
                "step": step,
                "loss": round(sum(losses) / len(losses), 4),
                "tokens_per_s": round(speed),
            }
            if step % EVALUATE_EVERY == 0 or step == recipe.steps:
                row |= evaluate(model, tokenizer)
            history.append(row)
            log(row)
            began, seen, losses = time.perf_counter(), 0, []
        if step % SAVE_EVERY == 0 or step == recipe.steps:
            save_checkpoint(folder, model, optimizers, step, history)
    return model, history
