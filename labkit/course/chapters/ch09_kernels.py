"""Exercises of notebook 09: bytes, operations, and kernels in between."""

from __future__ import annotations

from labkit.course.chapters.exercises_09_crossing import CROSSING
from labkit.course.chapters.exercises_09_gemv import GEMV
from labkit.course.chapters.exercises_09_int8 import INT8
from labkit.course.chapters.exercises_09_intensity import INTENSITY
from labkit.course.chapters.exercises_09_layout import LAYOUT
from labkit.course.chapters.exercises_09_mask import MASK

EXERCISES = [INTENSITY, LAYOUT, GEMV, INT8, CROSSING, MASK]
