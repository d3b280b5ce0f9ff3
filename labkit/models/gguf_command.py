"""`labkit gguf`: models into llama.cpp's format, back, and a look into a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from labkit.core.errors import FormatError, LabkitError
from labkit.formats.gguf.inspect_command import inspect

if TYPE_CHECKING:
    from labkit.models.gguf_report import Conversion

app = typer.Typer(help="GGUF files: write, read back, look into.", add_completion=False)
app.command(name="inspect")(inspect)

_MODEL = Annotated[
    str | None,
    typer.Argument(help="Folder or hub name; default $LABKIT_MODEL or the bundled model."),
]


@app.command()
def convert(
    model: _MODEL = None,
    type_name: Annotated[
        str, typer.Option("--type", help="F16, Q8_0, Q4_K_M, Q2_K, IQ4_NL, ...")
    ] = "Q4_K_M",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default MODEL-TYPE.gguf.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix, from `labkit gguf imatrix`.")
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for every matrix.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a model as a GGUF file that llama.cpp, Ollama and LM Studio run."""
    console = Console(stderr=True)
    with _said(console):
        from labkit.models.loading import model_name
        from labkit.models.progress import layer_progress
        from labkit.models.to_gguf import to_gguf

        target = out or Path(f"{Path(model_name(model)).name}-{type_name}.gguf")
        if target.exists() and not force:
            raise FormatError("there is a file already", str(target), "Pass --force to replace it.")
        with layer_progress(console) as progress:
            done = to_gguf(
                _source(model), target, type_name, imatrix, pure=pure, force=force,
                progress=progress,
            )  # fmt: skip
        _summary(done, console)


@app.command(name="imatrix")
def importance(
    model: _MODEL = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("imatrix.gguf"),
    corpus: Annotated[
        str, typer.Option(help="Corpus or text file to calibrate on.")
    ] = "stdlib-code",
    sequences: Annotated[int, typer.Option(help="Calibration sequences.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 256,
    seed: Annotated[int, typer.Option(help="Chooses the sequences.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences in memory at a time.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Measure which columns matter, and write it as llama.cpp's importance matrix."""
    console = Console(stderr=True)
    with _said(console):
        from labkit.data.calibration import calibration_set
        from labkit.formats.gguf import imatrix as files
        from labkit.models.importance import importance_matrix
        from labkit.models.progress import layer_progress
        from labkit.models.to_gguf import folder_tokenizer

        if out.exists() and not force:
            raise FormatError("there is a file already", str(out), "Pass --force to replace it.")
        source = _source(model)
        if isinstance(source, tuple):
            source, tokenizer = source
        else:
            tokenizer = folder_tokenizer(source)
        ids = calibration_set(tokenizer, corpus, sequences, length, seed)
        with layer_progress(console) as progress:
            matrix = importance_matrix(
                source, ids, batch_size=batch_size, datasets=(corpus,), progress=progress
            )
        files.write(out, matrix, force=force)
        tokens = sequences * length
        console.print(f"{len(matrix.sums)} tensors, {tokens} tokens of {corpus}; written: {out}")


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    dtype: Annotated[
        str, typer.Option(help="float32 (every bit), bfloat16 or float16.")
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is there.")] = False,
) -> None:
    """Write a GGUF model as a folder that transformers reads, its weights dequantized."""
    console = Console(stderr=True)
    with _said(console):
        from labkit.models.from_gguf import from_gguf
        from labkit.models.progress import layer_progress

        with layer_progress(console) as progress:
            from_gguf(file, out, dtype, overwrite=force, progress=progress)
        console.print(f"written: {out}")


@contextmanager
def _said(console: Console) -> Iterator[None]:
    """An error in words, and exit status 1."""
    try:
        yield
    except LabkitError as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        for note in getattr(error, "__notes__", ()):
            console.print(escape(note), highlight=False)
        raise typer.Exit(1) from error


def _source(name: str | None):
    """A folder to read lazily, or a hub model in memory with its tokenizer."""
    from labkit.models.loading import BUNDLED, bundled_folder, load, model_name

    wanted = model_name(name)
    folder = bundled_folder() if wanted == BUNDLED else Path(wanted).expanduser()
    return folder if folder.is_dir() else load(name)


def _summary(done: Conversion, console: Console) -> None:
    types = ", ".join(f"{count} {name}" for name, count in done.count().most_common())
    console.print(f"{done.file_type}: {types}; {done.bits_per_weight:.3f} bits a weight")
    reasons: dict[tuple[str, str], list[str]] = {}
    for tensor in done.fallbacks:
        reasons.setdefault((tensor.type_name, tensor.reason), []).append(tensor.name)
    for (type_name, reason), names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"{names[0]}{more} fell back to {type_name}: {reason}", highlight=False)
    for note in done.notes:
        console.print(escape(note), highlight=False)
    console.print(f"written: {done.path}, {done.nbytes:,} bytes", highlight=False)
