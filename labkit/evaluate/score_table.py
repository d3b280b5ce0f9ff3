"""The score table as text: every figure beside its distance from FP32."""

from __future__ import annotations

from rich import box
from rich.table import Table

from labkit.evaluate.score_row import ScoreRow


def _short(name: str) -> str:
    return name.removeprefix("stdlib-")


def _perplexity(value: float, base: float) -> str:
    if value >= 1000:
        return f"{value:.2g}"
    difference = value - base
    return f"{value:.2f}" + (f" {difference:+.2f}" if abs(difference) >= 0.005 else "")


def _accuracy(value: float, base: float) -> str:
    points = round(100 * (value - base))
    return f"{100 * value:.0f} %" + (f" {points:+d}" if points else "")


def score_table(rows: list[ScoreRow], title: str) -> Table:
    """One line a method; each figure is followed by its difference from the first row, FP32."""
    caption = "after each figure: its difference from FP32 (accuracy in points)"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1))
    base = rows[0]
    table.add_column("method", no_wrap=True)
    for heading in ["bits/w", "MB"]:
        table.add_column(heading, justify="right")
    for heading in [*map(_short, base.perplexity), *base.tasks]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.bits_per_weight:.2f}",
            f"{row.megabytes:.1f}",
            *(_perplexity(value, base.perplexity[name]) for name, value in row.perplexity.items()),
            *(_accuracy(value, base.tasks[name]) for name, value in row.tasks.items()),
        )
    return table
