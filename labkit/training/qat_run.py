"""Quantization-aware training of a language model from its name to a folder: `labkit qat`.

    load, round (GPTQ's codes, or the nearest), train towards the float model, export

All that is unfinished lies in a work folder, so that a killed run goes on where it was:

    work/run.json      what was asked for; locked while a process works here
    work/start/        GPTQ's finished blocks
    work/training/     the last checkpoint
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from labkit.core.errors import FormatError, LabkitError, ResumeError, StorageError
from labkit.data.calibration import calibration_set, check_vocabulary
from labkit.evaluate.heldout import heldout_perplexities
from labkit.formats import module_of
from labkit.models.blockwise import quantize_blockwise
from labkit.models.loading import BUNDLED, load, model_name
from labkit.models.methods import Gptq
from labkit.models.resume import WorkFolder
from labkit.training.checkpoint import History
from labkit.training.convert import convert
from labkit.training.course_batches import course_batches
from labkit.training.prepare import prepare
from labkit.training.qat_request import QatRequest
from labkit.training.start import start_from
from labkit.training.text_batches import TextBatches
from labkit.training.trainer import TrainSettings, train

Progress = Callable[[str, int, int], None]


def quantization_aware_training(
    request: QatRequest,
    settings: TrainSettings,
    out: Path,
    work: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train, and write the folder `out`, which appears when it is whole.

    Args:
        settings: of the training; it is evaluated before its first step and behind its last.
        work: where unfinished work lies; the caller removes it when `out` is written.
        resume: go on with the run that was begun in `work`.
        overwrite: replace `out` if it is there.
        tell: gets a line now and then; progress: as `labkit.models.progress` yields it.

    Returns:
        "float", "start" and "trained": held-out perplexity by corpus, of the float model and of
        the rounded one before and after; "history": `labkit.training.trainer.train`'s.

    Raises:
        FormatError: `out` is there, or the format does not hold such a model; before training.
        ResumeError: an unfinished run in `work` without `resume`, or none, or another one with it.
        DivergenceError, StorageError, CorpusError, ModelError, ...: what the parts raise.
    """
    _require_free(out, overwrite)
    _require_resumable(work, resume)
    _require_writable(out.absolute().parent)
    _require_writable(work.absolute().parent)
    model, tokenizer = load(request.model)
    batches = _batches(request, tokenizer)
    first = batches(0)
    tokens = first if isinstance(first, Tensor) else first.tokens
    check_vocabulary(tokens[:, :-1], model)

    def measured(network: nn.Module) -> dict[str, float]:
        return heldout_perplexities(
            network, tokenizer, request.text(), request.length, request.evaluate_tokens
        )

    before = measured(model)
    asked = {"request": request.as_json(), "settings": asdict(settings)}
    with _forgotten_if_refused(work, resume), WorkFolder(work, asked).claimed():
        prepared = _started(model, tokenizer, request, work, tell, progress)
        _try_export(prepared, tokenizer, request, out)
        history = train(
            prepared,
            batches,
            settings,
            teacher=model,
            evaluate=measured,
            progress=progress,
            folder=work / "training",
        )
        _export(prepared, tokenizer, request, out, overwrite)
    start, trained = _first_and_last(history, before)
    return {"float": before, "start": start, "trained": trained, "history": history}


def _require_free(out: Path, overwrite: bool) -> None:
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(
            "there is something already",
            where=str(out),
            remedy="Name another folder, or say that it may be replaced (--force).",
        )


def _require_resumable(work: Path, resume: bool) -> None:
    begun = (work / "run.json").is_file()
    if begun and not resume:
        raise ResumeError(
            "an unfinished run was begun here",
            where=str(work),
            remedy="Go on with it (--resume), or remove the folder.",
        )
    if resume and not begun:
        raise ResumeError(
            "there is no run to go on with", where=str(work), remedy="Leave --resume out."
        )


@contextmanager
def _forgotten_if_refused(work: Path, resume: bool) -> Iterator[None]:
    """What cannot be trained at all leaves no folder that another request would stumble over."""
    try:
        yield
    except (StorageError, ResumeError):
        raise
    except LabkitError:
        if not resume and not (work / "training").exists():
            shutil.rmtree(work, ignore_errors=True)
        raise


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise StorageError(
            f"nothing can be written there: {error}",
            where=str(folder),
            remedy="Choose another folder.",
        ) from error


def _batches(request: QatRequest, tokenizer: PreTrainedTokenizerBase) -> Callable[[int], Any]:
    if not request.corpora and model_name(request.model) == BUNDLED:
        return course_batches(tokenizer, request.rows, request.length, request.seed)
    return TextBatches(tokenizer, request.text(), request.rows, request.length, request.seed)


def _started(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    request: QatRequest,
    work: Path,
    tell: Callable[[str], None],
    progress: Progress | None,
) -> nn.Module:
    config = request.config()
    prepared = prepare(model, config, tell=tell)
    if request.start == "gptq":
        sets = [
            calibration_set(tokenizer, name, request.sequences, request.length)
            for name in request.text()
        ]
        # Reordered columns help, and training by group does not know them.
        method = Gptq(config.weights, act_order=config.weights.granularity == "channel")
        solved = quantize_blockwise(
            model, method, torch.cat(sets), work=work / "start", progress=progress
        )
        start_from(prepared, solved.layers)
    return prepared


def _try_export(
    prepared: nn.Module, tokenizer: PreTrainedTokenizerBase, request: QatRequest, out: Path
) -> None:
    """Write the untrained model once, and throw it away: what a format refuses it refuses now."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as place:
        _export(prepared, tokenizer, request, Path(place) / "trial")


def _export(
    prepared: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    request: QatRequest,
    out: Path,
    overwrite: bool = False,
) -> None:
    checkpoint = convert(prepared).checkpoint(tokenizer)
    module_of(request.file_format).save(checkpoint, out, overwrite=overwrite)


def _first_and_last(history: History, names: dict[str, float]) -> tuple[dict[str, float], ...]:
    rows = [row for row in history if all(name in row for name in names)]
    return tuple({name: row[name] for name in names} for row in (rows[0], rows[-1]))
