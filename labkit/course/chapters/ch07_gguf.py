"""Exercises of notebook 07: what is in a GGUF file, and what each block type costs."""

from __future__ import annotations

from labkit.course.chapters.exercises_07_bits import BITS
from labkit.course.chapters.exercises_07_choose import CHOOSE
from labkit.course.chapters.exercises_07_header import READ_HEADER
from labkit.course.chapters.exercises_07_q4_0 import DECODE_Q4_0
from labkit.course.chapters.exercises_07_q8_0 import ENCODE_Q8_0
from labkit.course.chapters.exercises_07_scale import WEIGHTED_SCALE
from labkit.course.chapters.exercises_07_scales import UNPACK_SCALES

EXERCISES = [
    READ_HEADER,
    ENCODE_Q8_0,
    DECODE_Q4_0,
    UNPACK_SCALES,
    BITS,
    WEIGHTED_SCALE,
    CHOOSE,
]
