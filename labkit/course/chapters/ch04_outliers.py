"""Exercises of notebook 04: loud channels, and three ways to live with them."""

from __future__ import annotations

from labkit.course.chapters.exercises_04_features import OUTLIER_FEATURES
from labkit.course.chapters.exercises_04_hadamard import HADAMARD
from labkit.course.chapters.exercises_04_rotate import ROTATE_PAIR
from labkit.course.chapters.exercises_04_smooth import SMOOTH
from labkit.course.chapters.exercises_04_split import SPLIT_MATMUL

EXERCISES = [OUTLIER_FEATURES, SPLIT_MATMUL, SMOOTH, HADAMARD, ROTATE_PAIR]
