"""One line of `labkit doctor`: what was looked at, what was found, and whether that will do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """How a finding bears on the course."""

    FINE = "ok"
    NOTE = "note"  # works, or is optional; `advice` says what would be better
    STOPS = "stops the course"


@dataclass(frozen=True)
class Finding:
    """What `labkit doctor` prints in one row; `advice` is a command or a sentence."""

    subject: str
    found: str
    state: State = State.FINE
    advice: str = ""
