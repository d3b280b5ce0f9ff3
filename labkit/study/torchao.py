"""Our quantization-aware training beside torchao's: prepare, train and convert the bundled model.

Same float model, same batches in the same order, same number of steps. torchao trains as its
guide says: AdamW and cross-entropy, grids that follow the weights' largest values. It has the
better of two learning rates, chosen by the very figures that are shown. Ours runs at *equal*
settings (that recipe, that rate: nothing differs but who computes it) and at *recommended* ones:
scales are learned, the float model is the teacher, and the better of the same two rates is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from labkit.core.scheme import QuantScheme
from labkit.data import load_corpus
from labkit.evaluate.heldout import heldout_perplexities
from labkit.evaluate.perplexity import windows
from labkit.models.loading import BUNDLED, bundled_folder, load
from labkit.peers import call
from labkit.training.convert import convert
from labkit.training.course_batches import course_batches
from labkit.training.prepare import QatConfig, prepare
from labkit.training.trainer import TrainSettings, train

CORPORA = ("stdlib-prose", "stdlib-code")
RATES = (2e-4, 1e-3)
TOKEN8 = QuantScheme(8, False, "token")
CONTEXT = 256


@dataclass(frozen=True)
class Case:
    """A scheme that both can train: symmetric weights, and 8-bit inputs token by token or none."""

    name: str
    weights: QuantScheme
    inputs: QuantScheme | None = None

    def words(self) -> dict[str, Any]:
        """As `labkit/peers/scripts/torchao_qat.py` takes it."""
        return {
            "bits": self.weights.bits,
            "group_size": self.weights.group_size or 0,
            "inputs": self.inputs is not None,
        }


CASES = (
    Case("4-bit groups of 32, 8-bit inputs", QuantScheme(4, True, "group", 32, False), TOKEN8),
    Case("2 bits by channel", QuantScheme(2, True, "channel", None, False)),
)


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    cases: tuple[Case, ...] = CASES
    rates: tuple[float, ...] = RATES
    steps: int = 60
    warmup: int = 6
    rows: int = 4
    length: int = 128
    heldout_tokens: int = 4096


QUICK = Size(cases=CASES[:1], rates=RATES[1:], steps=2, warmup=1, rows=2, heldout_tokens=512)


def run(quick: bool = False, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Held-out perplexities after convert, by domain, of every case and setting.

    Returns:
        "steps", "batch" (rows and tokens of each), "heldout_tokens" (of a domain), "float"
        (perplexities of the model that all start from), and "rows": one for each run with "case",
        "library", "setting", "lr", "start" (rounded, untrained), and "perplexity" (converted).

    Raises:
        PeerMissingError: torchao's environment is not there.
        PeerError: it failed.
    """
    size = QUICK if quick else Size()
    model, tokenizer = load(BUNDLED)
    course = course_batches(tokenizer, size.rows, size.length)
    batches = torch.stack([course(step).tokens for step in range(size.steps)])
    tokens = {name: _windows(tokenizer, name, size) for name in CORPORA} | {"batches": batches}
    rows = []
    for case in size.cases:
        theirs = _theirs(case, tokens, size)
        best = min(theirs, key=_total)["lr"]
        ours = [_ours(case, model, tokenizer, batches, size, best, "equal")]
        ours += [
            _ours(case, model, tokenizer, batches, size, lr, "recommended") for lr in size.rates
        ]
        for row in theirs + ours:
            tell(
                f"{case.name}, {row['library']}, {row['setting']}, lr {row['lr']:g}: "
                f"{_pair(row['perplexity'])}"
            )
        rows += theirs + ours
    return {
        "model": BUNDLED,
        "steps": size.steps,
        "batch": [size.rows, size.length],
        "heldout_tokens": size.heldout_tokens,
        "float": _perplexities(model, tokenizer, size),
        "rows": rows,
    }


def _windows(tokenizer: PreTrainedTokenizerBase, name: str, size: Size) -> Tensor:
    """The windows that `perplexity` scores, int64 [windows, CONTEXT + 1]: all of one length."""
    text = load_corpus(name, "heldout").text
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor([tokenizer.bos_token_id, *ids[: size.heldout_tokens]])
    return torch.stack([ids[start:end] for start, end, _ in windows(len(ids), CONTEXT, CONTEXT)])


def _theirs(case: Case, tokens: dict[str, Tensor], size: Size) -> list[dict[str, Any]]:
    shared = case.words() | {
        "source": str(bundled_folder()),
        "batches": "batches",
        "heldout": list(CORPORA),
        "warmup": size.warmup,
        "clip_norm": TrainSettings().clip_norm,
    }
    runs = [shared | {"name": str(lr), "lr": lr} for lr in size.rates]
    threads = torch.get_num_threads()
    _, found = call("torchao", "torchao_qat", tokens, {"runs": runs}, threads=threads, timeout=7200)
    return [
        {
            "case": case.name,
            "library": "torchao",
            "setting": "equal",
            "lr": lr,
            "start": _exponentials(found[str(lr)]["start"]),
            "perplexity": _exponentials(found[str(lr)]["converted"]),
        }
        for lr in size.rates
    ]


def _ours(
    case: Case,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batches: Tensor,
    size: Size,
    lr: float,
    setting: Literal["equal", "recommended"],
) -> dict[str, Any]:
    """A run of ours with this learning rate."""
    measured = partial(_perplexities, tokenizer=tokenizer, size=size)
    settings = TrainSettings(steps=size.steps, warmup=size.warmup, lr=lr)
    if setting == "recommended":
        prepared, teacher = prepare(model, QatConfig(case.weights, case.inputs), tell=_quiet), model
    else:
        config = QatConfig(case.weights, case.inputs, scales="minmax", scale_dtype=torch.float32)
        prepared, teacher = prepare(model, config, tell=_quiet), None
    start = measured(convert(prepared).model)
    train(prepared, lambda step: batches[step], settings, teacher=teacher)
    return {
        "case": case.name,
        "library": "labkit",
        "setting": setting,
        "lr": lr,
        "start": start,
        "perplexity": measured(convert(prepared).model),
    }


def _perplexities(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, size: Size
) -> dict[str, float]:
    return heldout_perplexities(model, tokenizer, CORPORA, CONTEXT, size.heldout_tokens)


def _exponentials(losses: dict[str, float]) -> dict[str, float]:
    return {name: float(torch.tensor(loss).exp()) for name, loss in losses.items()}


def _quiet(line: str) -> None:
    pass


def readme_block(result: dict[str, Any]) -> str:
    """The table of the README: perplexities, prose / code, at both settings."""
    lines = [
        f"Held-out perplexity (prose / code) after {result['steps']} steps of "
        f"{result['batch'][0]} x {result['batch'][1]} tokens; "
        f"{_pair(result['float'])} in floating point.",
        "",
        "| weights | untrained | torchao | labkit, equal settings | labkit, recommended |",
        "|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(row["case"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["case"] == case]
        theirs = min((r for r in rows if r["library"] == "torchao"), key=_total)
        equal = next(r for r in rows if _is(r, "labkit", "equal") and r["lr"] == theirs["lr"])
        recommended = min((r for r in rows if _is(r, "labkit", "recommended")), key=_total)
        cells = [_pair(theirs["start"])]
        cells += [_pair(row["perplexity"]) for row in (theirs, equal, recommended)]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _is(row: dict[str, Any], library: str, setting: str) -> bool:
    return row["library"] == library and row["setting"] == setting


def _total(row: dict[str, Any]) -> float:
    return sum(row["perplexity"].values())


def _pair(figures: dict[str, float]) -> str:
    return " / ".join(f"{figures[name]:.2f}" for name in CORPORA)
