"""What `labkit study scale` found, as README shows it."""

from __future__ import annotations

from typing import Any


def readme_block(result: dict[str, Any]) -> str:
    """A line for GPTQ and one for Q4_K_M, and the reasoning in sentences."""
    gptq, gguf, ahead = result["gptq"], result["gguf"], result["extrapolated"]
    larger = ahead["larger"]
    heads = ("", "blocks measured", "seconds a block", "peak memory", "all of it")
    lines = [f"| {' | '.join((*heads, larger['model']))} |", "|" + "---|" * (len(heads) + 1)]
    blocks = [part for part in gguf["parts"] if part["part"].startswith("blk.")]
    of_gguf = sum(part["seconds"] for part in blocks) / len(blocks)
    for name, found, parts, kind, each in (
        ("GPTQ, int4 in groups of 128", gptq, gptq["blocks"], "gptq", ahead["gptq_block_seconds"]),
        ("GGUF, Q4_K_M", gguf, blocks, "gguf", of_gguf),
    ):
        times = [_time(ahead[f"{kind}_seconds"]), _time(larger[f"{kind}_seconds"])]
        cells = [str(len(parts)), f"{each:.1f}", f"{found['peak_bytes'] / 1e9:.2f} GB", *times]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*lines, "", *(f"- {text}" for text in _reasons(result, blocks))])


def _reasons(result: dict[str, Any], blocks: list[dict[str, Any]]) -> list[str]:
    model, gptq, ahead = result["model"], result["gptq"], result["extrapolated"]
    larger, calibration = ahead["larger"], result["calibration"]
    seconds = _running(gptq["blocks"])
    peaks = ", ".join(f"{part['peak_bytes'] / 1e9:.2f}" for part in gptq["blocks"])
    return [
        f"Random weights, hidden {model['hidden']}, FFN {model['ffn']}, {model['layers']} blocks"
        f" on the disk: {model['bytes'] / 1e9:.1f} GB of float16. GPTQ is calibrated on"
        f" {calibration['sequences']} x {calibration['length']} tokens.",
        f"GPTQ, seconds after each block: {_listed(seconds)}; peak memory of each, in GB: {peaks}."
        f" Before the first block it takes {gptq['start']['seconds']:.1f} s.",
        f"Q4_K_M, seconds after the first blocks: {_listed(_running(blocks)[:3])}; after all"
        f" {len(blocks)}: {_running(blocks)[-1]:.1f}.",
        "All blocks have the same shapes, so time grows with their number. A block of"
        f" {larger['model']} takes {larger['operations_ratio']:.1f} times the operations of a"
        " block of this one (`labkit/study/scale_cost.py` counts them), hence the last column."
        f" The same rule says {ahead['predicted_from_half_width']:.1f} s for a block of this one"
        " from one of half the width; measured:"
        f" {ahead['gptq_block_seconds']:.1f} s.",
        "What the driver holds at the widest linear, added up, in GB:"
        f" {sum(ahead['memory_terms'].values()) / 1e9:.1f} here,"
        f" {sum(larger['memory_terms'].values()) / 1e9:.1f} for {larger['model']}, and"
        f" {gptq['before_bytes'] / 1e9:.1f} for Python and its libraries.",
    ]


def _running(parts: list[dict[str, Any]]) -> list[float]:
    """Seconds after the first part, after two, ..."""
    sums, total = [], 0.0
    for part in parts:
        total += part["seconds"]
        sums.append(total)
    return sums


def _listed(seconds: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in seconds)


def _time(seconds: float) -> str:
    """Minutes below two hours, hours above."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
