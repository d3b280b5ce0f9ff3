"""README.md and curve.png of the bundled model, from the figures of card.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEXT = """\
# reference-lm

A small Llama that the course quantizes: {parameters:.1f} M parameters, stored in bfloat16. Hidden
size {hidden}, FFN {ffn}, {layers} layers, {heads} heads, {kv_heads} KV heads, vocabulary
{vocabulary}, tied embeddings. Trained from nothing by `{command}` on the standard library of the
running Python (its docstrings, reference topics and code) and on four generated tasks. It knows
nothing else.

## Held-out figures

Made by `{command}` ({made}). Perplexity over the first {scored} held-out tokens of each domain,
windows without overlap.

| text | perplexity |
|---|---|
{perplexity}

Tasks: greedy exact match in FP32, 95 % Wilson interval. The questions come from a seed; doctest
expressions of kinds that are many enough never occur in training.

| task | right | accuracy | interval |
|---|---|---|---|
{tasks}

![Training curve: held-out perplexity and task accuracy against training tokens](curve.png)

## Training

{steps} steps, {tokens:.1f} M tokens, {hours:.1f} hours at {speed:.0f} tokens/s (median) while the
machine did other work too. Muon on the hidden matrices, AdamW on the rest; forward pass in
bfloat16. The whole recipe and every logged figure are in `card.json`. A run repeats the recipe, not
the bits: another processor rounds differently, and another Python version brings another text.
{notes}

| corpus | split | documents | characters | SHA-256 begins |
|---|---|---|---|---|
{corpora}

The tokenizer is byte-level BPE with digits one by one; `tokenizer(text)` puts `<|endoftext|>` in
front. Not a model to use for anything but learning what quantization does.
"""


def _step_tokens(card: dict[str, Any], step: int) -> int:
    """Training tokens seen by the end of a step."""
    seen = 0
    for phase in card["recipe"]["phases"]:
        steps = min(step, phase["steps"])
        seen += steps * phase["rows"] * phase["length"]
        step -= steps
    return seen


def _hours(card: dict[str, Any]) -> float:
    seconds, before = 0.0, 0
    for row in card["history"]:
        tokens = _step_tokens(card, row["step"])
        seconds += (tokens - before) / row["tokens_per_s"]
        before = tokens
    return seconds / 3600


def render(card: dict[str, Any]) -> str:
    """README.md as a function of card.json, so that the two cannot disagree."""
    sizes, made, measured = card["recipe"]["architecture"], card["made_with"], card["measured"]
    speeds = sorted(row["tokens_per_s"] for row in card["history"])
    tasks = [
        f"| {name} | {row['correct']} of {row['total']} | {row['correct'] / row['total']:.1%} "
        f"| {row['interval'][0]:.1%} to {row['interval'][1]:.1%} |"
        for name, row in measured["tasks"].items()
    ]
    corpora = [
        f"| {name} | {split} | {row['documents']} | {row['characters']} | `{row['sha256'][:12]}` |"
        for name, splits in card["corpora"].items()
        for split, row in splits.items()
    ]
    return _TEXT.format(
        parameters=card["parameters"] / 1e6,
        hidden=sizes["hidden_size"],
        ffn=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        vocabulary=sizes["vocab_size"],
        command=card["command"],
        made=f"Python {made['python']}, torch {made['torch']}, {made['cpu']}, "
        f"{made['threads']} threads",
        scored=measured["tokens_scored"],
        perplexity="\n".join(f"| {k} | {v:.2f} |" for k, v in measured["perplexity"].items()),
        tasks="\n".join(tasks),
        steps=card["history"][-1]["step"],
        tokens=card["tokens"] / 1e6,
        hours=_hours(card),
        speed=speeds[len(speeds) // 2],
        corpora="\n".join(corpora),
        notes="".join(f"\n{note}\n" for note in card["notes"]),
    )


def curve(card: dict[str, Any]) -> Figure:
    """Held-out perplexity (log) and task accuracy against millions of training tokens."""
    from matplotlib.figure import Figure

    rows = [row for row in card["history"] if "facts" in row]
    tokens = [_step_tokens(card, row["step"]) / 1e6 for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in card["corpora"]:
        left.plot(tokens, [row[name] for row in rows], marker="o", label=name)
    for name in card["measured"]["tasks"]:
        right.plot(tokens, [100 * row[name] for row in rows], marker="o", label=name)
    left.set(yscale="log", xlabel="training tokens, millions", ylabel="held-out perplexity")
    right.set(xlabel="training tokens, millions", ylabel="greedy exact match, %", ylim=(-3, 103))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.25)
    return figure
