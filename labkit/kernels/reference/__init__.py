"""The kernels of `labkit.kernels` as formulas: float64 or exact integers, rounded once at the end.

Slow, and the truth that the others are tested against.
"""
