"""`labkit quantize`: quantize a model block by block and write it in a format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from labkit.core.errors import FormatError, LabkitError, ModelError

if TYPE_CHECKING:
    from labkit.models.result import QuantizedModel

# hqq keeps real zero-points, for which no reader has a format; bitsandbytes makes its LLM.int8()
# from float weights while it loads.
_FORMAT_OF = {
    "rtn": "gptq",
    "gptq": "gptq",
    "awq": "awq",
    "nf4": "bitsandbytes",
    "smoothquant": "compressed-tensors",
}

app = typer.Typer(help="Quantize a model and write it in a format.", add_completion=False)


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or hub name; default $LABKIT_MODEL or the bundled model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("quantized"),
    method: Annotated[str, typer.Option(help="rtn, gptq, awq, nf4, hqq, ...")] = "gptq",
    bits: Annotated[
        int | None, typer.Option(help="Bits of a weight; default the method's.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale; 0 for a whole row.")
    ] = None,
    symmetric: Annotated[
        bool | None, typer.Option(help="Without or with zero-points; default the method's.")
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="gptq, gptq_v2, awq, compressed-tensors or bitsandbytes; default the method's.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method: damp=0.05")
    ] = None,
    corpus: Annotated[
        str, typer.Option(help="Corpus or text file to calibrate on.")
    ] = "stdlib-code",
    sequences: Annotated[int, typer.Option(help="Calibration sequences.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 256,
    seed: Annotated[int, typer.Option(help="Chooses the sequences.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences in memory at a time.")] = 8,
    keep: Annotated[
        list[str] | None, typer.Option(help="Layers that stay in float; * stands for anything.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for unfinished work; default beside --out.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write each layer's figures as JSON.")] = None,
) -> None:
    """Quantize every linear of the decoder blocks. Killed, the same command goes on."""
    console = Console(stderr=True)
    work = work or out.with_name(f"{out.name}.work")
    grid = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    text = {"corpus": corpus, "sequences": sequences, "length": length, "seed": seed}
    driver = {"work": work, "batch_size": batch_size, "keep": keep or []}
    try:
        result = _quantize(
            model, method, settings or [], grid, text, driver, out, output_format, console
        )
    except LabkitError as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        for note in getattr(error, "__notes__", ()):
            console.print(escape(note), highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        console.print(f"Interrupted. The same command goes on from what is in {work}.")
        raise typer.Exit(130) from interrupt
    _summary(result, console)
    if report is not None:
        report.write_text(json.dumps([r.figures() for r in result.reports], indent=1) + "\n")
    shutil.rmtree(work)
    console.print(f"written: {out}")


def _quantize(
    model: str | None,
    method: str,
    settings: list[str],
    grid: dict[str, Any],
    text: dict[str, Any],
    driver: dict[str, Any],
    out: Path,
    output_format: str | None,
    console: Console,
) -> QuantizedModel:
    from labkit.data.calibration import calibration_set
    from labkit.formats import InputQuantization, module_of
    from labkit.formats.tokenizer_files import tokenizer_files
    from labkit.models.blockwise import quantize_blockwise
    from labkit.models.method_settings import method_from_words
    from labkit.models.progress import layer_progress

    # Everything that can be wrong with the request is found before the work begins.
    chosen = method_from_words(method, settings, **grid)
    name, options = _format(method, output_format, chosen.settings())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError("there is something already", where=str(out), remedy="Name another.")
    source, tokenizer = _open(model)
    calibration = calibration_set(tokenizer, **text) if chosen.needs_inputs else None
    with layer_progress(console) as progress:
        result = quantize_blockwise(source, chosen, calibration, progress=progress, **driver)
    checkpoint = result.checkpoint(result.files or tokenizer_files(tokenizer))
    if method == "smoothquant":  # its point is that inputs can be int8 too: W8A8, token by token
        how = InputQuantization("int", "token")
        checkpoint = replace(checkpoint, inputs=dict.fromkeys(result.layers, how))
    module_of(name).save(checkpoint, out, **options)
    return result


def _format(method: str, asked: str | None, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name of the format, and what it wants to be told."""
    from labkit.formats import FORMATS

    name = asked or _FORMAT_OF.get(method)
    if name is None:
        raise FormatError(
            f"no format holds what {method} makes",
            remedy="Use labkit.models.blockwise.quantize_blockwise, and keep the model in memory.",
        )
    if name in ("gptq", "gptq_v2"):
        damp = {"damp_percent": settings["damp"]} if "damp" in settings else {}
        same = ("static_groups", "true_sequential")
        return "gptq", {"version": name} | damp | {k: settings[k] for k in same if k in settings}
    if name not in FORMATS:
        known = ", ".join(["gptq_v2", *FORMATS])
        raise FormatError(f"no format {name!r}", remedy=f"Choose from {known}.")
    return name, {}


def _open(name: str | None):
    """A folder to read lazily, or a hub model in memory; and the tokenizer."""
    from transformers import AutoTokenizer

    from labkit.models.loading import BUNDLED, bundled_folder, load, model_name
    from labkit.models.sources import FolderSource

    wanted = model_name(name)
    folder = bundled_folder() if wanted == BUNDLED else Path(wanted).expanduser()
    if not folder.is_dir():
        return load(name)
    source = FolderSource(folder)
    try:
        return source, AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer that can be read ({error})",
            where=str(folder),
            remedy="Put the tokenizer's files beside the weights.",
        ) from error


def _summary(result: QuantizedModel, console: Console) -> None:
    done = [report for report in result.reports if report.method != "kept"]
    worst = min(done, key=lambda report: report.sqnr_db)
    bits = [result.layers[name].bits_per_weight for name in result.layers]
    sizes = [result.layers[name].shape.numel() for name in result.layers]
    mean = sum(b * n for b, n in zip(bits, sizes, strict=True)) / sum(sizes)
    console.print(f"{len(done)} layers, {mean:.3f} bits a weight")
    console.print(f"worst: {worst.name}, {worst.sqnr_db:.1f} dB")
    notes = {}
    for report in result.reports:
        if report.note:
            notes.setdefault(report.note, []).append(report.name)
    for note, names in notes.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"{names[0]}{more}: {note}", highlight=False)
