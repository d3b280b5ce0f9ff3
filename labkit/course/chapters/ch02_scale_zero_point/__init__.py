"""Exercises of notebook 02: from real numbers to integers, and arithmetic on the integers."""

from labkit.course.chapters.ch02_scale_zero_point.asymmetric import ASYMMETRIC
from labkit.course.chapters.ch02_scale_zero_point.codes import CODES
from labkit.course.chapters.ch02_scale_zero_point.least_error import BEST_THRESHOLD
from labkit.course.chapters.ch02_scale_zero_point.matmul import MATMUL
from labkit.course.chapters.ch02_scale_zero_point.percentile import PERCENTILE
from labkit.course.chapters.ch02_scale_zero_point.symmetric import SYMMETRIC

EXERCISES = [SYMMETRIC, ASYMMETRIC, CODES, PERCENTILE, BEST_THRESHOLD, MATMUL]
