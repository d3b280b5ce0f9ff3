"""A results file: figures, the command that made them, and what they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.evaluate.provenance import made_with


def save(path: Path, command: str, figures: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all: aside first, then under its name.

    Raises ValueError for a figure that is no number (NaN, infinity).
    """
    record = {"command": command, "made_with": made_with(), **figures}
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)
