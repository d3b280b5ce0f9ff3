"""The figures in README.md, written from data/results alone: `python -m labkit.readme`.

A block between `<!-- name -->` and `<!-- /name -->` belongs to this module; a test fails when the
file and the results disagree.
"""

from __future__ import annotations

import json
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

BENCHES = ("quantizers", "kernels", "decode", "memory")
STUDIES = ("qat", "torchao", "qlora", "images", "encoder", "scale")
# Of the longest record README shows the larger shape, with one token, and the product of many.
SHOWN = {"kernels": "11008 x 4096, 1 token|512 tokens"}
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def score_block() -> str:
    """The score table, every row that was recorded."""
    result = _read("score.json")
    domains, tasks = list(result["rows"][0]["perplexity"]), list(result["rows"][0]["tasks"])
    head = ["method", "bits per weight", "MB", *(f"perplexity, {d[7:]}" for d in domains), *tasks]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in result["rows"]:
        cells = [row["method"], f"{row['bits_per_weight']:.2f}", f"{row['megabytes']:.1f}"]
        cells += [f"{row['perplexity'][d]:.4g}" for d in domains]
        cells += [f"{row['tasks'][t]:.0%}" for t in tasks]
        lines.append(f"| {' | '.join(cells)} |")
    made = result["made_with"]
    lines += ["", f"`{result['command']}`, {_processor(made)}, Python {made['python']}."]
    return "\n".join(lines)


def times_block() -> str:
    """How long the commands take, and where that was measured."""
    result = _read("times.json")
    lines = ["| command | | time |", "|---|---|---|"]
    for row in result["rows"]:
        minutes, seconds = divmod(row["seconds"], 60)
        time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        lines.append(f"| `{row['command']}` | {row['state']} | {time} |")
    return "\n".join([*lines, "", f"Measured on {result['machine']}."])


def bench_block(group: str) -> str:
    """Ours beside the libraries: times, their ratio, the errors of both; or memory beside files."""
    result = _read(f"bench-{group}.json")
    some = SHOWN.get(group, "")
    rows = [row for row in result["rows"] if re.search(some, row["what"])]
    made = result["made_with"]
    source = f"`{result['command']}`, {_processor(made)}, torch {made['torch']}."
    if len(rows) < len(result["rows"]):
        source += f" {len(rows)} of {len(result['rows'])} rows: data/results/bench-{group}.json."
    if "file_bytes" in rows[0]:
        return "\n".join([*_memory_lines(rows), "", source])
    # A note that several rows share is said once, with the first of them; notes that differ from
    # row to row have a column. So have errors, where anything is compared.
    notes = {row["note"]: row["what"].split(",")[0] for row in reversed(rows)}
    noted = len(notes) > len(rows) / 2
    compared = any(row["error"] is not None for row in rows)
    heads = ["what", "beside", "ours", "theirs", "times as fast"]
    heads += ["our error", "theirs"] * compared + ["note"] * noted
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["what"], row["peer"], _seconds(row["seconds"]), _seconds(row["peer_seconds"])]
        # Near 1 the second digit says who is ahead.
        cells.append(f"{row['ratio']:.2f}" if row["ratio"] < 1.95 else f"{row['ratio']:.1f}")
        cells += [_error(row["error"]), _error(row["peer_error"])] * compared
        lines.append(f"| {' | '.join(cells + [row['note']] * noted)} |")
    below = [f"- {what}: {note}." for note, what in reversed(notes.items()) if note and not noted]
    return "\n".join([*lines, "", *(below and [*below, ""]), source])


def _memory_lines(rows: list[dict[str, Any]]) -> list[str]:
    heads = ("format", "weights", "file, MB", "loaded, MB", "peak", "after tokens", "loaded / file")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        sizes = [row[f"{name}_bytes"] for name in ("file", "resident", "peak", "running")]
        cells = [row["what"], f"{row['parameters'] / 1e6:.0f} M"]
        cells += ["" if size is None else f"{size / 1e6:.0f}" for size in sizes]
        lines.append(f"| {' | '.join([*cells, format(row['resident_ratio'], '.2f')])} |")
    return lines


def gguf_block() -> str:
    """Million weights a second of our encoders and decoders, and how many times ggml's that is."""
    result = _read("bench-gguf.json")
    tasks = ("encode", "encode with importance", "decode")
    counts = sorted({row["threads"] for row in result["rows"]})
    head = ["type"]
    for task in tasks:
        head += [f"{task}, million a second", *(f"x ggml, threads {count}" for count in counts)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(row["type_name"] for row in result["rows"]):
        cells = [name]
        for task in tasks:
            rows = [r for r in result["rows"] if (r["type_name"], r["task"]) == (name, task)]
            rows.sort(key=lambda row: row["threads"])
            if not rows:
                cells += [""] * (1 + len(counts))
                continue
            cells.append(f"{rows[-1]['size'] ** 2 / rows[-1]['seconds'] / 1e6:.0f}")
            cells += [f"{row['ratio']:.1f}" for row in rows]
        lines.append(f"| {' | '.join(cells)} |")
    same = "equal" if all(row["equal"] for row in result["rows"]) else "NOT equal"
    size, machine = result["rows"][0]["size"], _processor(result["made_with"])
    said = f"`{result['command']}`, {size} x {size} weights, {machine}; bytes and values: {same}."
    return "\n".join([*lines, "", said])


def study_block(name: str) -> str:
    """The table of a study, and the command that recorded it."""
    result = _read(f"study-{name}.json")
    made = result["made_with"]
    table = import_module(f"labkit.study.{name}").readme_block(result)
    source = f"`{result['command']}`, {_processor(made)}, torch {made['torch']}."
    return f"{table}\n\n{source}"


def _processor(made: dict[str, object]) -> str:
    """Such as "AMD EPYC (znver5)"; older records do not say which design it was."""
    design = f" ({made['design']})" if "design" in made else ""
    return f"{made['cpu']}{design}"


def _error(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.0e}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


BLOCKS = {
    "score": score_block,
    "times": times_block,
    **{name: partial(bench_block, name) for name in BENCHES},
    "gguf": gguf_block,
    **{f"study-{name}": partial(study_block, name) for name in STUDIES},
}


def filled(text: str) -> str:
    """`text` with every block written anew.

    Raises KeyError when a block's markers are missing.
    """
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise KeyError(f"README.md has no block {name!r}")
        block = make()
        text = pattern.sub(lambda found, block=block: found[1] + block + found[2], text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
