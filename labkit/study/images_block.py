"""The README's block on images: tables of calibration, of training, of engines and of times."""

from __future__ import annotations

from typing import Any


def readme_block(result: dict[str, Any]) -> str:
    """Three tables: calibration, training where it drops, engines."""
    exact = result["float"]
    lines = [
        f"The float net is right on {exact['accuracy']:.1%} ± {exact['error']:.1%} of "
        f"{result['images']['test']} test images; changes against it, with one standard error:",
        "",
        "| weights, activations, scales | range | 50 images | 200 | 1000 |",
        "|---|---|---|---|---|",
    ]
    table: dict[tuple[str, str], list[str]] = {}
    for row in result["ptq"]:
        key = (f"W{row['weights']}A{row['inputs']} per {row['granularity']}", row["range"])
        table.setdefault(key, []).append(_points(row))
    lines += [f"| {' | '.join((*key, *cells))} |" for key, cells in table.items()]
    steps = next(row["steps"] for row in result["qat"] if "steps" in row)
    lines += ["", f"| | calibrated only | trained {steps} steps |", "|---|---|---|"]
    for row in result["qat"]:
        cells = [_points(row[key]) if key in row else "" for key in ("before", "after")]
        lines.append(f"| {row['setting']} | {' | '.join(cells)} |")
    lines += ["", "| engine | accuracy | logits against FP32 |", "|---|---|---|"]
    lines += [
        f"| {row['engine']} | {row['accuracy']:.1%} | {row['logits_db']:.1f} dB |"
        for row in result["engines"]
    ]
    return "\n".join([*lines, "", *_latency_table(result["latency"])])


def _points(row: dict[str, float]) -> str:
    return f"{100 * row['change']:+.1f} ± {100 * row['change_error']:.1f}"


def _latency_table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    columns = list(dict.fromkeys((row["net"], row["batch"]) for row in rows))
    heads = [f"{net}, batch {batch}" for net, batch in columns]
    lines = [f"| ms a batch | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for engine in dict.fromkeys(row["engine"] for row in rows):
        found = {(r["net"], r["batch"]): r["ms"] for r in rows if r["engine"] == engine}
        cells = " | ".join(f"{found[column]:.3g}" for column in columns)
        lines.append(f"| {engine} | {cells} |")
    return lines
