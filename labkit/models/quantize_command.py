"""`labkit quantize`: quantize a model block by block and write it in a format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from labkit.core.errors import FormatError, LabkitError, ModelError

if TYPE_CHECKING:
    from labkit.models.result import QuantizedModel

app = typer.Typer(help="Quantize a model and write it in a format.", add_completion=False)


@app.callback(invoke_without_command=True)
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
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="With zero-points.")] = False,
    output_format: Annotated[
        str, typer.Option("--format", help="gptq, awq, compressed-tensors or bitsandbytes.")
    ] = "gptq",
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
    try:
        result = _quantize(
            model, method, _scheme(bits, group_size, asymmetric), settings or [],
            (corpus, sequences, length, seed), batch_size, keep or [], work, out, output_format,
            console,
        )  # fmt: skip
    except LabkitError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        for note in getattr(error, "__notes__", ()):
            console.print(note, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        console.print(f"Interrupted. The same command goes on from what is in {work}.")
        raise typer.Exit(130) from interrupt
    _summary(result, console)
    if report is not None:
        report.write_text(json.dumps([r.figures() for r in result.reports], indent=1) + "\n")
    shutil.rmtree(work)
    console.print(f"written: {out}")


def _scheme(bits: int | None, group_size: int | None, asymmetric: bool):
    """The scheme that the options describe; None when none was given."""
    from labkit.core.scheme import QuantScheme

    if bits is None and group_size is None and not asymmetric:
        return None
    size = 128 if group_size is None else group_size
    granularity = "group" if size else "channel"
    return QuantScheme(bits or 4, not asymmetric, granularity, size or None, narrow_range=False)


def _quantize(
    model, method, scheme, settings, text, batch_size, keep, work, out, output_format, console
) -> QuantizedModel:
    from labkit.data.calibration import calibration_set
    from labkit.formats import FORMATS, module_of
    from labkit.models.blockwise import quantize_blockwise
    from labkit.models.method_settings import method_from_words
    from labkit.models.progress import layer_progress

    # Everything that can be wrong with the request is found before the work begins.
    if output_format not in FORMATS:
        raise FormatError(f"no format {output_format!r}", remedy=f"One of {', '.join(FORMATS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError("there is something already", where=str(out), remedy="Name another.")
    chosen = method_from_words(method, scheme, settings)
    source, tokenizer = _open(model)
    calibration = calibration_set(tokenizer, *text) if chosen.needs_inputs else None
    with layer_progress(console) as progress:
        result = quantize_blockwise(
            source,
            chosen,
            calibration,
            work=work,
            batch_size=batch_size,
            keep=keep,
            progress=progress,
        )
    files = result.files or _tokenizer_files(tokenizer)
    module_of(output_format).save(result.checkpoint(files), out)
    return result


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


def _tokenizer_files(tokenizer) -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


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
