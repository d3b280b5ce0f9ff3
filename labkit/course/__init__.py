"""Exercises, their checks, and the learner's progress. A notebook needs these three."""

from labkit.course.notebook import check, hint, reveal

__all__ = ["check", "hint", "reveal"]
