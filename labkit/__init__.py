"""Quantizers, kernels and exercises of a hands-on course on neural-network quantization.

Importing `labkit` imports nothing heavy: torch, transformers and numba load when first needed.
"""

__version__ = "0.1.0"
