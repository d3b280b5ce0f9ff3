"""Exercises of notebook 05: rounding one weight, and letting the others repair it."""

from __future__ import annotations

from labkit.course.chapters.exercises_05_groups import GROUPS
from labkit.course.chapters.exercises_05_hessian import HESSIAN
from labkit.course.chapters.exercises_05_order import ORDER
from labkit.course.chapters.exercises_05_pack import PACK
from labkit.course.chapters.exercises_05_rows import ROWS
from labkit.course.chapters.exercises_05_step import STEP

EXERCISES = [HESSIAN, STEP, ROWS, GROUPS, ORDER, PACK]
