"""Exercises of notebook 01: number formats, and the memory they save."""

from __future__ import annotations

from labkit.course.chapters.exercises_01_decode import DECODE
from labkit.course.chapters.exercises_01_encode import ENCODE
from labkit.course.chapters.exercises_01_levels import LOSS_SCALE, NORMAL_FLOAT
from labkit.course.chapters.exercises_01_memory import MEMORY

EXERCISES = [DECODE, ENCODE, LOSS_SCALE, NORMAL_FLOAT, MEMORY]
