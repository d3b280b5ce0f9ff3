"""`labkit bench`: ours beside the peers, in one run."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from labkit.bench import harness
from labkit.bench.options import Device, Options, with_options
from labkit.bench.quantizers import SOURCES, compare


@dataclass(frozen=True)
class Group:
    """A line of `labkit bench`."""

    what: str
    beside: str


GROUPS = {
    "quantizers": Group(
        "GPTQ, AWQ, NF4, HQQ: time and error", "AutoGPTQ, GPTQModel, AutoAWQ, bitsandbytes, hqq"
    ),
    "gguf": Group("encoding and decoding every GGUF type", "ggml of llama.cpp"),
    "kernels": Group(
        "products with packed weights", "torch, oneDNN, ONNX Runtime, llama.cpp, bitsandbytes"
    ),
    "decode": Group("tokens a second of a whole model: prefill, decode", "llama.cpp"),
    "memory": Group("resident memory of a loaded model", "the bytes of its file"),
}

# The modules whose `rows(effort)` measures a group; one with a `table` prints its own.
MODULES = {
    "kernels": "labkit.bench.kernel_rows",
    "decode": "labkit.bench.decode_rows",
    "memory": "labkit.bench.memory_rows",
}
# The same for a card: `rows(effort, device)`.
CARD_MODULES = {"kernels": "labkit.bench.gpu_rows", "memory": "labkit.bench.vram_rows"}

app = typer.Typer(help="Ours beside the real libraries, in one run.", add_completion=False)
Only = Annotated[list[str] | None, typer.Option(help="May be repeated.")]


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Ours beside the real libraries, in one run. Without a group: what there is."""
    if context.invoked_subcommand is None:
        Console(width=130).print(overview())


def overview() -> Table:
    """The groups, and the command that recorded each of them."""
    found = Table(title="labkit bench GROUP [--quick]")
    for heading in ("group", "measures", "beside", "recorded by"):
        found.add_column(heading)
    for name, group in GROUPS.items():
        record = harness.RESULTS / f"bench-{name}.json"
        command = ""
        if record.is_file():
            command = json.loads(record.read_text(encoding="utf-8"))["command"]
        found.add_row(name, group.what, group.beside, command)
    return found


@app.command()
@with_options()
def quantizers(options: Options, only: Only = None) -> None:
    """Seconds and output error of our quantizers (gptq, awq, nf4) and of the libraries' own.

    Peers live in environments of their own: `make card-env`, `make peers`.
    """
    from labkit.bench.tables import bench_table

    names = harness.chosen(only, list(SOURCES))
    words = [] if names == list(SOURCES) else [f"--only {name}" for name in names]
    rows = lambda effort: compare(names, effort)  # noqa: E731
    harness.run("quantizers", rows, bench_table, options, words=words)


@app.command()
@with_options(threads="1,2")
def gguf(options: Options, only: Only = None) -> None:
    """Encode and decode a 4096 x 4096 weight in every GGUF type: ours and ggml's C, in turns."""
    from labkit.bench import gguf_rows
    from labkit.bench.tables import gguf_table

    names = [name.upper() for name in only] if only else list(gguf_rows.TYPES)
    words = [f"--only {name}" for name in only or []]
    rows = lambda effort: gguf_rows.rows(  # noqa: E731
        names, 1024 if effort.quick else 4096, effort.rounds, [effort.threads]
    )
    harness.run("gguf", rows, gguf_table, options, words=words)


@app.command()
@with_options()
def kernels(options: Options, device: Device = "cpu") -> None:
    """Products with packed weights beside torch, ONNX Runtime, llama.cpp, bitsandbytes, torchao.

    On a card: beside its bandwidth, and at 1 to 16 tokens.
    """
    _run("kernels", options, device)


@app.command()
@with_options()
def decode(options: Options) -> None:
    """Tokens a second of a random 1B model, ours and llama.cpp's on the same file."""
    _run("decode", options)


@app.command()
@with_options(rounds=1)
def memory(options: Options, device: Device = "cpu") -> None:
    """Resident memory of a model loaded from each format, beside the bytes of its file.

    On a card: what a 7B model of random 4-bit weights takes of its memory while it generates.
    """
    _run("memory", options, device)


def _run(group: str, options: Options, device: str = "cpu") -> None:
    from labkit.bench.tables import bench_table

    if device == "cpu":
        module = importlib.import_module(MODULES[group])
        rows = lambda effort: module.rows(effort)  # noqa: E731
    else:
        module = importlib.import_module(CARD_MODULES[group])
        rows = lambda effort: module.rows(effort, device)  # noqa: E731
    table = getattr(module, "table", bench_table)
    means = getattr(module, "RATIO_MEANS", "times as fast as the peer")
    harness.run(group, rows, table, options, ratio_means=means, device=device)
