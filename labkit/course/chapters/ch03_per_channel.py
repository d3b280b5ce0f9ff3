"""Exercises of notebook 03: how many numbers share a scale, what it buys, and what it costs."""

from __future__ import annotations

from labkit.course.chapters.exercises_03_bits import BITS_PER_WEIGHT
from labkit.course.chapters.exercises_03_channels import CHANNEL_SCALES
from labkit.course.chapters.exercises_03_groups import QUANTIZE_GROUPS
from labkit.course.chapters.exercises_03_integers import INTEGER_LINEAR
from labkit.course.chapters.exercises_03_metrics import COSINE, SQNR

EXERCISES = [CHANNEL_SCALES, SQNR, COSINE, QUANTIZE_GROUPS, BITS_PER_WEIGHT, INTEGER_LINEAR]
