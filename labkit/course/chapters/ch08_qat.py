"""Exercises of notebook 08: training with rounded numbers, and what becomes of it."""

from __future__ import annotations

from labkit.course.chapters.exercises_08_distill import DISTILL
from labkit.course.chapters.exercises_08_export import EXPORT
from labkit.course.chapters.exercises_08_fold import FOLD
from labkit.course.chapters.exercises_08_lsq import LSQ
from labkit.course.chapters.exercises_08_merge import MERGE
from labkit.course.chapters.exercises_08_place import PLACE
from labkit.course.chapters.exercises_08_ste import STRAIGHT_THROUGH

EXERCISES = [STRAIGHT_THROUGH, PLACE, LSQ, DISTILL, FOLD, EXPORT, MERGE]
