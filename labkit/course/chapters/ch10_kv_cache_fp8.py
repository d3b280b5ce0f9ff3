"""Exercises of notebook 10: the cache of keys and values, its pages, and FP8."""

from __future__ import annotations

from labkit.course.chapters.exercises_10_attend import ATTEND
from labkit.course.chapters.exercises_10_axes import AXES
from labkit.course.chapters.exercises_10_fit import FIT
from labkit.course.chapters.exercises_10_fp8 import FP8
from labkit.course.chapters.exercises_10_pages import EXTEND, RELEASE

EXERCISES = [FIT, ATTEND, AXES, EXTEND, RELEASE, FP8]
