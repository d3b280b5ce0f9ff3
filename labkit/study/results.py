"""The recorded studies: data/results/study-NAME.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labkit.core.errors import FormatError
from labkit.evaluate.record import save

__all__ = ["FOLDER", "load", "save"]

FOLDER = Path(__file__).resolve().parents[2] / "data" / "results"


def load(name: str) -> dict[str, Any]:
    """What `labkit study NAME` recorded: "command", "made_with" and the study's own figures.

    Raises:
        FormatError: no such record, or one that is no JSON.
    """
    path = FOLDER / f"study-{name}.json"
    remedy = f"Make it with `labkit study {name} --save {path.name}`."
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError("no record of this study", where=path.name, remedy=remedy) from error
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error}", where=path.name, remedy=remedy) from error
