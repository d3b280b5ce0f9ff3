"""The training loop: deterministic for a seed, resumes where it was killed, stops when it diverges.

    train(prepared, batches, TrainSettings(steps=180), teacher=model)

Batches are a function of the step alone, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from labkit.core.errors import NonFiniteError, SchemeError
from labkit.models.resume import WorkFolder
from labkit.training.checkpoint import History, fingerprint, load_training, save_training
from labkit.training.divergence import DivergenceError, Watch, diverged
from labkit.training.losses import LanguageLoss
from labkit.training.lsq import LearnedScale
from labkit.training.optimizer import Kind, build_optimizers, lr_factor, set_lr
from labkit.training.pact import LearnedClip
from labkit.training.prepare import freeze_ranges, observe

Loss = Callable[[nn.Module, Any], Tensor]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainSettings:
    """Every number of a run.

    Args:
        steps: batches to train on.
        lr, scale_lr, optimizer, weight_decay: `labkit.training.optimizer.build_optimizers`.
        warmup: steps over which the learning rate rises; it then falls linearly to 0.
        clip_norm: the largest norm of a step's gradient; larger ones are shortened.
        distill, temperature: of the language loss, if there is a teacher (`LanguageLoss`).
        clip_decay: factor of alpha² in the loss, for every `LearnedClip` of the model.
        freeze_at: share of the steps after which ranges and batch statistics stay; 1.0 for never.
        bfloat16: compute products in bfloat16; the weights stay in float32.
        evaluate_every, save_every: in steps; the end counts too.
        divergence: a loss above this multiple of the lowest ends the run.
        seed: of whatever is random in the model (dropout).

    Raises:
        SchemeError: numbers that make no run.
    """

    steps: int = 180
    lr: float = 1e-3
    scale_lr: float = 3e-3
    optimizer: Kind = "adamw"
    weight_decay: float = 0.0
    warmup: int = 10
    clip_norm: float = 1.0
    distill: float = 1.0
    temperature: float = 1.0
    clip_decay: float = 1e-5
    freeze_at: float = 1.0
    bfloat16: bool = False
    evaluate_every: int = 60
    save_every: int = 50
    divergence: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (self.steps, self.clip_norm, self.evaluate_every, self.save_every)
        rates = (self.lr, self.scale_lr, self.weight_decay, self.clip_decay, self.warmup)
        sound = all(math.isfinite(n) and n >= 0 for n in rates) and min(positive) > 0
        sound = sound and 0 <= self.freeze_at <= 1 and self.divergence > 1
        if not sound or self.optimizer not in get_args(Kind):
            raise SchemeError(
                f"{self}",
                where="TrainSettings",
                remedy="Counts are at least 1, rates at least 0, freeze_at 0 to 1, divergence"
                f" above 1, the optimizer one of {', '.join(get_args(Kind))}.",
            )


def train(
    model: nn.Module,
    batches: Callable[[int], Any],
    settings: TrainSettings,
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    progress: Progress | None = None,
    folder: Path | str | None = None,
) -> History:
    """Train a prepared model in place, leave it in evaluation mode, and return its history.

    Args:
        batches: step (from 0) to what `loss` takes; for the default loss token ids
            [rows, length + 1] or `labkit.training.reference.mixture.Batch`.
        teacher: the float model, for the default loss; without it, cross-entropy alone.
        loss: what to lower instead, called with the model and a batch.
        evaluate: called in evaluation mode before the first step and then every so often; its
            figures join the history.
        progress: called after each step with a word on the loss, the steps done and their number;
            `labkit.models.progress.layer_progress` gives one.
        folder: where to leave checkpoints; the same call again goes on from the last one, to the
            same weights as a run that was never stopped.

    Returns:
        One row a step: "step" (from 1), "loss", "gradient" (norm), "lr" (part of the peak), and
        the figures of `evaluate` where it was called; a row of step 0 holds those of the start.

    Raises:
        DivergenceError: a loss, gradient or tensor that is no longer finite, or a loss that rose;
            `.history` holds the curve until then.
        ResumeError: the folder belongs to another run, or to one at work.
        StorageError: the folder cannot be written to.
        NonFiniteError, CalibrationError, ...: what the layers raise at the very first step.
    """
    if loss is None:
        share = settings.distill if teacher is not None else 0.0
        loss = LanguageLoss(teacher, share, settings.temperature)
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    with ExitStack() as stack:
        place = None if folder is None else Path(folder)
        if place is not None:
            asked = {"settings": asdict(settings), "model": fingerprint(model)}
            stack.enter_context(WorkFolder(place, asked).claimed())
        # Dropout draws from the global generator: the caller's comes back afterwards.
        stack.enter_context(torch.random.fork_rng())
        run = _Run(model, batches, settings, loss, evaluate, progress, place)
        return run.to_the_end()


class _Run:
    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Any],
        settings: TrainSettings,
        loss: Loss,
        evaluate: Callable[[nn.Module], dict[str, float]] | None,
        progress: Progress | None,
        folder: Path | None,
    ) -> None:
        self.model, self.batches, self.settings, self.loss = model, batches, settings, loss
        self.evaluate, self.progress, self.folder = evaluate, progress, folder
        self.optimizers: list[Optimizer] = []
        self.done, self.history = 0, History()

    def to_the_end(self) -> History:
        settings, model = self.settings, self.model
        model.train()
        self._start()
        watch = Watch(settings.divergence)
        for row in self.history:
            if "loss" in row:
                watch.add(int(row["step"]), row["loss"], row["gradient"], 0.0)
        while self.done < settings.steps:
            if self.done >= settings.freeze_at * settings.steps:
                freeze_ranges(model)
            try:
                self.history.append(self._step(watch))
            except DivergenceError as error:
                error.history = self.history
                raise
            self._report()
        model.eval()
        return self.history

    def _start(self) -> None:
        settings, model = self.settings, self.model
        self._wake()
        self.optimizers = build_optimizers(
            model, settings.optimizer, settings.lr, settings.scale_lr, settings.weight_decay
        )
        if self.folder is not None:
            self.done, self.history = load_training(self.folder, model, self.optimizers)
        if self.done == 0 and self.evaluate is not None:
            self.history.append({"step": 0} | self._evaluated())

    def _wake(self) -> None:
        """Let learned ranges that have seen nothing start: their learning rate depends on it."""
        learned = (m for m in self.model.modules() if isinstance(m, LearnedScale | LearnedClip))
        asleep = (module for module in learned if not module.seen)
        if next(asleep, None) is not None:
            observe(self.model, [0], lambda model, step: self._loss_of(step))

    def _loss_of(self, step: int) -> Tensor:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.settings.bfloat16):
            return self.loss(self.model, self.batches(step))

    def _step(self, watch: Watch) -> dict[str, float]:
        settings, step = self.settings, self.done
        factor = lr_factor(step, settings.steps, settings.warmup)
        set_lr(self.optimizers, factor)
        torch.manual_seed(settings.seed + step)
        try:
            loss = self._loss_of(step)
        except NonFiniteError as error:
            if step == 0:  # nothing has been trained yet: the fault lies elsewhere
                raise
            raise diverged(step + 1, str(error), settings.lr * factor) from error
        self._penalized(loss).backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm))
        watch.add(step + 1, loss.item(), norm, settings.lr * factor)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done = step + 1
        return {"step": self.done, "loss": loss.item(), "gradient": norm, "lr": factor}

    def _penalized(self, loss: Tensor) -> Tensor:
        clips = [m.penalty() for m in self.model.modules() if isinstance(m, LearnedClip)]
        return loss + self.settings.clip_decay * torch.stack(clips).sum() if clips else loss

    def _report(self) -> None:
        settings, ended = self.settings, self.done == self.settings.steps
        if self.evaluate is not None and (ended or self.done % settings.evaluate_every == 0):
            self.history[-1] |= self._evaluated()
        if self.folder is not None and (ended or self.done % settings.save_every == 0):
            save_training(self.folder, self.model, self.optimizers, self.done, self.history)
        if self.progress is not None:
            self.progress(f"loss {self.history[-1]['loss']:.4f}", self.done, settings.steps)

    def _evaluated(self) -> dict[str, float]:
        assert self.evaluate is not None
        self.model.eval()
        figures = {name: float(value) for name, value in self.evaluate(self.model).items()}
        self.model.train()
        return figures
