"""Find exercises by id. A chapter's file is imported when one of its exercises is asked for."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from types import MappingProxyType

from labkit.core.errors import ExerciseError
from labkit.course import chapters
from labkit.course.exercise import Exercise


@functools.cache
def chapter_modules() -> dict[str, str]:
    """Number of every chapter that has exercises, with the module that declares them."""
    found = sorted(module.name for module in pkgutil.iter_modules(chapters.__path__))
    return {name[2:4]: f"{chapters.__name__}.{name}" for name in found if _is_chapter(name)}


def _is_chapter(name: str) -> bool:
    return re.match(r"ch\d\d_", name) is not None


@functools.cache
def exercises_of(chapter: str) -> MappingProxyType[str, Exercise]:
    """The exercises of one chapter, by id, in the order they were declared.

    Raises ExerciseError if there is no such chapter, or if it declares an id twice or one that
    belongs to another chapter.
    """
    modules = chapter_modules()
    if chapter not in modules:
        known = ", ".join(modules)
        raise ExerciseError(f"there is no chapter {chapter!r}", remedy=f"Chapters: {known}.")
    declared: list[Exercise] = importlib.import_module(modules[chapter]).EXERCISES
    found = {exercise.id: exercise for exercise in declared}
    strays = [exercise.id for exercise in declared if exercise.chapter != chapter]
    if len(found) != len(declared) or strays:
        ids = ", ".join(exercise.id for exercise in declared)
        raise ExerciseError(
            f"the ids {ids} are not all different and of this chapter", where=modules[chapter]
        )
    return MappingProxyType(found)


def get(exercise_id: str) -> Exercise:
    """The exercise of that id. Raises ExerciseError, with the ids there are, if there is none."""
    chapter = str(exercise_id).split(".")[0]
    found = exercises_of(chapter)
    if exercise_id not in found:
        raise ExerciseError(
            f"there is no exercise {exercise_id!r}",
            remedy=f"Exercises of chapter {chapter}: {', '.join(found)}.",
        )
    return found[exercise_id]


def select(wanted: str = "") -> list[Exercise]:
    """All exercises, or those of a chapter ("02"), or one ("02.1")."""
    if "." in wanted:
        return [get(wanted)]
    numbers = [wanted] if wanted else list(chapter_modules())
    return [exercise for number in numbers for exercise in exercises_of(number).values()]
