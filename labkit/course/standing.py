"""Where the learner stands: events summed up per exercise and per chapter, and shown as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from labkit.course.catalogue import CHAPTERS, Chapter
from labkit.course.exercise import Exercise
from labkit.course.progress import Event
from labkit.course.registry import chapter_modules, exercises_of

State = Literal["passed", "passed after reveal", "tried", "open"]


@dataclass(frozen=True)
class ExerciseStanding:
    """One exercise: its state, and how many attempts and hints it took so far."""

    exercise: Exercise
    state: State
    attempts: int
    hints: int

    @property
    def is_passed(self) -> bool:
        """Passed, with or without the answer revealed before."""
        return self.state.startswith("passed")


@dataclass(frozen=True)
class ChapterStanding:
    """One chapter of the course and the standing of each of its exercises."""

    chapter: Chapter
    exercises: tuple[ExerciseStanding, ...]

    @property
    def passed(self) -> int:
        """How many exercises are passed."""
        return sum(standing.is_passed for standing in self.exercises)

    @property
    def minutes_left(self) -> int:
        """Expected minutes for the exercises that are not passed."""
        return sum(s.exercise.minutes for s in self.exercises if not s.is_passed)


def exercise_standing(exercise: Exercise, events: Iterable[Event]) -> ExerciseStanding:
    """Sum up the events of one exercise. A pass stays a pass, whatever is tried later."""
    kinds = [event.kind for event in events if event.exercise_id == exercise.id]
    attempts = sum(kind in ("passed", "failed") for kind in kinds)
    state: State = "tried" if attempts else "open"
    if "passed" in kinds:
        revealed = "reveal" in kinds[: kinds.index("passed")]
        state = "passed after reveal" if revealed else "passed"
    return ExerciseStanding(exercise, state, attempts, kinds.count("hint"))


def course_standing(events: list[Event]) -> list[ChapterStanding]:
    """Every chapter that can be worked on, in order."""
    available = chapter_modules()
    return [
        ChapterStanding(
            chapter,
            tuple(exercise_standing(e, events) for e in exercises_of(chapter.number).values()),
        )
        for chapter in CHAPTERS
        if chapter.number in available
    ]


def standing_text(standings: list[ChapterStanding]) -> str:
    """A plain-text map of progress: one line a chapter."""
    width = max(len(s.chapter.notebook) for s in standings)
    lines = [
        f"{s.chapter.notebook:<{width}}  {_bar(s.passed, len(s.exercises))}  "
        f"{s.passed} of {len(s.exercises)} exercises"
        for s in standings
    ]
    passed, total = sum(s.passed for s in standings), sum(len(s.exercises) for s in standings)
    return "\n".join([*lines, f"Passed {passed} of {total} exercises."])


def _bar(done: int, total: int) -> str:
    return "[" + "#" * done + "." * (total - done) + "]" + " " * max(0, 8 - total)
