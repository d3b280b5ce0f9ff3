"""The figures in README.md, written from data/results alone: `python -m labkit.readme`.

A block between `<!-- name -->` and `<!-- /name -->` belongs to this module; a test fails when the
file and the results disagree.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
    lines += ["", f"`{result['command']}`, {made['cpu']}, Python {made['python']}."]
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


BLOCKS = {"score": score_block, "times": times_block}


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
