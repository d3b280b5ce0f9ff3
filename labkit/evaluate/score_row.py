"""One measured row of the score table, and the rows that were recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
RECORDED = _RESULTS / "score.json"  # labkit score
RECORDED_ALL = _RESULTS / "score-all.json"  # labkit score --all


@dataclass(frozen=True)
class ScoreRow:
    """One measured row. Perplexity and accuracy by name; `megabytes` of the whole model."""

    method: str
    bits_per_weight: float
    megabytes: float
    perplexity: dict[str, float]
    tasks: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        return {
            "method": self.method,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "megabytes": round(self.megabytes, 4),
            "perplexity": {name: round(value, 4) for name, value in self.perplexity.items()},
            "tasks": {name: round(value, 4) for name, value in self.tasks.items()},
        }


def recorded_rows(path: Path = RECORDED) -> list[ScoreRow]:
    """The rows of a results file that `labkit score --save` wrote."""
    return [ScoreRow(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
