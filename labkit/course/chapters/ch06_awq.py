"""Exercises of notebook 06: which weights matter, and how to protect them without keeping any."""

from __future__ import annotations

from labkit.course.chapters.exercises_06_clip import BEST_CLIP
from labkit.course.chapters.exercises_06_fold import FOLD
from labkit.course.chapters.exercises_06_pack import PACK_AWQ
from labkit.course.chapters.exercises_06_salience import SALIENT_CHANNELS
from labkit.course.chapters.exercises_06_scales import SEARCH_SCALES

EXERCISES = [SALIENT_CHANNELS, SEARCH_SCALES, FOLD, BEST_CLIP, PACK_AWQ]
