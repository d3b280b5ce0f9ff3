"""What one line of a comparison holds, and how its times are taken.

A file of rows (gptq_rows.py, awq_rows.py, nf4_rows.py) defines

    def rows(effort: Effort) -> Iterator[BenchRow]

and is named in `labkit.bench.quantizers.SOURCES`. A peer whose environment is missing raises
PeerMissingError, which the command shows in place of the row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        quick: smaller problems, meant for less than a minute; no record of the course.
        rounds: how often each side is timed; ours and the peer's take turns.
        threads: for both sides.
    """

    quick: bool = False
    rounds: int = 5
    threads: int = 2

    @property
    def process_rounds(self) -> int:
        """Rounds where the peer is a process of its own, whose start takes most of the time."""
        return 1 if self.quick else self.rounds


@dataclass(frozen=True)
class BenchRow:
    """One comparison.

    Attributes:
        what: the task, its sizes and settings.
        peer: library and version.
        seconds: ours, the median over rounds.
        peer_seconds: theirs.
        error: relative output error ‖ŷ - y‖ / ‖y‖ of ours (of the weights where nothing is
            multiplied; ``note`` says so); None where there is nothing to compare.
        peer_error: theirs, by the same formula on the same inputs.
        rounds: how many times each was timed.
        note: what the reader must know, such as a patch that the peer needs.
    """

    what: str
    peer: str
    seconds: float
    peer_seconds: float
    error: float | None
    peer_error: float | None
    rounds: int
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer ours is."""
        return self.peer_seconds / self.seconds

    def as_dict(self) -> dict[str, object]:
        """The row for a results file."""
        return asdict(self) | {"ratio": self.ratio}


def named(package: str, what: str = "") -> str:
    """A peer's name: "torch 2.13.0, what it is". Raises PackageNotFoundError if it is not there."""
    return f"{package} {version(package)}" + (f", {what}" if what else "")


def alternate(
    ours: Callable[[], object], theirs: Callable[[], float], rounds: int
) -> tuple[float, float]:
    """Return (our seconds, their seconds), medians over ``rounds`` in which both take turns.

    ``ours`` is timed here: its second call of a round, as the first warms up what the peer's turn
    has cooled down. ``theirs`` returns the seconds that it measured itself, in its own process, and
    warms up likewise.
    """
    mine, other = [], []
    for _ in range(rounds):
        other.append(theirs())
        ours()
        started = time.perf_counter()
        ours()
        mine.append(time.perf_counter() - started)
    return statistics.median(mine), statistics.median(other)
