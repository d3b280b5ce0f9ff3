"""How much of what GPTQ loses can training win back, and how fast? `labkit study qat`

Each run starts at GPTQ's own codes (step 0 of its curve is GPTQ, with the same rounded inputs) and
may use 5 % of the tokens on which the bundled model was trained. The float model is the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from labkit.core.scheme import QuantScheme
from labkit.data.calibration import calibration_set
from labkit.data.tasks import TASKS
from labkit.evaluate.heldout import heldout_perplexities
from labkit.evaluate.tasks import task_accuracy
from labkit.models.blockwise import quantize_blockwise
from labkit.models.loading import load
from labkit.models.methods import Gptq
from labkit.training.course_batches import course_batches
from labkit.training.prepare import QatConfig, prepare
from labkit.training.start import start_from
from labkit.training.trainer import TrainSettings, train

DOMAINS = ("stdlib-code", "stdlib-prose")
TRAINED_TOKENS = 14_745_600  # of the bundled model: data/reference-lm/card.json; a test compares
ROWS, LENGTH = 8, 256


@dataclass(frozen=True)
class Run:
    """One row: what is rounded, and with which numbers it is trained.

    Args:
        inputs: bits of the layers' inputs, per token on the spot; None for floats.
        start: "gptq", or how a learned scale starts (`labkit.training.lsq.LearnedScale`).
    """

    what: str
    bits: int
    inputs: int | None = None
    start: str = "gptq"
    lr: float = 2e-3
    scale_lr: float = 3e-3
    steps: int = 360

    def config(self) -> QatConfig:
        """Symmetric per output channel, with the lowest code in use: 3 bits are -4 to 3."""
        scheme = QuantScheme(self.bits, True, "channel", narrow_range=False)
        inputs = None if self.inputs is None else QuantScheme(self.inputs, True, "token")
        return QatConfig(scheme, inputs, start="mse" if self.start == "gptq" else self.start)


RUNS = (
    Run("W3, one scale a row", 3, scale_lr=1e-3),
    Run("W2, one scale a row", 2),
    Run("W4A8, one scale a row and a token", 4, inputs=8, lr=1e-3, scale_lr=1e-3, steps=180),
)


def run(quick: bool = False, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """All runs; "quick" trains the first for four steps and evaluates on little text."""
    model, tokenizer = load()
    tokens, curve_tokens, count = (1024, 1024, 4) if quick else (32768, 8192, 200)

    def figures(network: nn.Module) -> dict[str, dict[str, float]]:
        return {
            "perplexity": heldout_perplexities(network, tokenizer, DOMAINS, LENGTH, tokens),
            "tasks": _tasks(network, tokenizer, count),
        }

    def point(network: nn.Module) -> dict[str, float]:
        return heldout_perplexities(network, tokenizer, DOMAINS, LENGTH, curve_tokens)

    exact = figures(model)
    runs = []
    for plan in RUNS[:1] if quick else RUNS:
        settings = _settings(plan, 4 if quick else plan.steps)
        prepared = _at_gptq(model, tokenizer, plan, 4 if quick else 64, tell)
        stages = {"fp32": exact, "gptq": figures(prepared)}
        if plan.start != "gptq":
            prepared = prepare(model, plan.config(), tell=tell)
        history = train(
            prepared,
            course_batches(tokenizer, ROWS, LENGTH),
            settings,
            teacher=model,
            evaluate=point,
            progress=partial(_tell_now_and_then, tell),
        )
        stages["qat"] = figures(prepared)
        runs.append(_record(plan, settings, history, stages))
        tell(f"{plan.what}: closed {runs[-1]['closed']}")
    return {
        "runs": runs,
        "perplexity_tokens": tokens,
        "curve_tokens": curve_tokens,
        "curve_fp32": point(model),
        "task_items": count,
    }


def closed(exact: float, before: float, after: float) -> float:
    """The part of the gap between `before` and `exact` that `after` has closed; 1 is all of it."""
    return (before - after) / (before - exact)


def _at_gptq(
    model: nn.Module, tokenizer, plan: Run, sequences: int, tell: Callable[[str], None]
) -> nn.Module:
    """The prepared model with GPTQ's codes, its inputs rounded as in training."""
    config = plan.config()
    ids = torch.cat([calibration_set(tokenizer, domain, sequences, LENGTH) for domain in DOMAINS])
    layers = quantize_blockwise(model, Gptq(config.weights, act_order=True), ids).layers
    prepared = prepare(model, config, tell=tell).eval()
    start_from(prepared, layers)
    return prepared


def _record(
    plan: Run,
    settings: TrainSettings,
    history: list[dict[str, float]],
    stages: dict[str, dict[str, dict[str, float]]],
) -> dict[str, Any]:
    tokens = settings.steps * ROWS * LENGTH
    ends = {stage: found["perplexity"] for stage, found in stages.items()}
    return {
        **asdict(plan),
        "steps": settings.steps,
        "tokens": tokens,
        "share_of_training": tokens / TRAINED_TOKENS,
        **ends,
        "closed": {d: closed(*(ends[k][d] for k in ("fp32", "gptq", "qat"))) for d in DOMAINS},
        "curve": [_point(row) for row in history if DOMAINS[0] in row],
        "loss": [row["loss"] for row in history if "loss" in row],
        "tasks": {stage: found["tasks"] for stage, found in stages.items()},
    }


def _tell_now_and_then(tell: Callable[[str], None], word: str, done: int, of: int) -> None:
    if done % 20 == 0:
        tell(f"{done}/{of} {word}")


def _settings(plan: Run, steps: int) -> TrainSettings:
    return TrainSettings(
        steps=steps,
        lr=plan.lr,
        scale_lr=plan.scale_lr,
        optimizer="muon",
        bfloat16=True,
        evaluate_every=max(1, steps // 6),
    )


def _tasks(model: nn.Module, tokenizer, count: int) -> dict[str, float]:
    return {name: task_accuracy(model, tokenizer, name, count, seed=1).accuracy for name in TASKS}


def _point(row: dict[str, float]) -> dict[str, float]:
    return {"step": row["step"], **{domain: row[domain] for domain in DOMAINS}}


def readme_block(result: dict[str, Any]) -> str:
    """The table of README: perplexity on code and prose, and the part of GPTQ's gap closed."""
    heads = ("rounded", "part of the training", "FP32", "GPTQ", "trained", "gap closed")
    heads += ("tasks after GPTQ", "after training")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in result["runs"]:
        pairs = [" / ".join(f"{row[k][d]:.4g}" for d in DOMAINS) for k in ("fp32", "gptq", "qat")]
        gap = " / ".join(f"{row['closed'][d]:.0%}" for d in DOMAINS)
        tasks = [
            " ".join(f"{name} {share:.0%}" for name, share in row["tasks"][kind].items())
            for kind in ("gptq", "qat")
        ]
        cells = [row["what"], f"{row['share_of_training']:.1%}", *pairs, gap, *tasks]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
