"""Weights and importances on which encoders of GGUF types are compared with ggml."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# 21 super-blocks a kind: compiled loops take sixteen side by side, across the ends of rows.
ROWS, COLUMNS = 7, 768
FLOAT = np.float32


def _powers(rng, low: float, high: float, every: int) -> np.ndarray:
    """Gaussian numbers, every run of ``every`` of them of another size, 10^low … 10^high."""
    sizes = 10.0 ** rng.uniform(low, high, (ROWS, COLUMNS // every))
    numbers = rng.standard_normal((ROWS, COLUMNS)) * sizes.repeat(every, axis=1)
    return numbers.clip(-3e38, 3e38).astype(FLOAT)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Name -> float32 [rows, 768]."""
    rng = np.random.default_rng(seed)
    shape = (ROWS, COLUMNS)
    gauss = rng.standard_normal(shape).astype(FLOAT)
    signs = np.where(rng.random(shape) < 0.5, FLOAT(0), FLOAT(-0.0))
    bits = rng.integers(0, 2**32, shape, np.uint32).view(FLOAT)
    steps = np.arange(1, COLUMNS + 1, dtype=FLOAT)
    alternating = np.resize(FLOAT([1, -1]), shape)
    constants = FLOAT([1, -1, 0.3, -7.7, 1e-14, 1e-16, -3e-15, 5e-41, 6e4, -1e-20, 1e-30, 1e4, -7])
    found = {
        "gaussian": gauss,
        "student-t": rng.standard_t(2, shape).astype(FLOAT),
        "cauchy": rng.standard_t(1, shape).astype(FLOAT),
        "zeros": np.zeros(shape, FLOAT),
        "signed zeros": signs,
        "signed zeros among numbers": np.where(rng.random(shape) < 0.5, gauss, signs),
        "few numbers among signed zeros": np.where(rng.random(shape) < 0.03, gauss, signs),
        "constants": constants.repeat(COLUMNS).reshape(-1, COLUMNS),
        "subnormals": (gauss * FLOAT(1e-39)).astype(FLOAT),
        "small subnormals": (gauss * FLOAT(1e-40)).astype(FLOAT),
        "few subnormals": (rng.integers(-50, 50, shape) * 1e-45).astype(FLOAT),
        "all subnormals": rng.integers(0, 2**23, shape, np.uint32).view(FLOAT),
        "alternating signs": alternating,
        "alternating signs, rising": alternating * steps,
        "ties between integers": (rng.integers(-64, 65, shape) / 2).astype(FLOAT),
        "ties between few integers": (rng.integers(-8, 9, shape) / 2).astype(FLOAT),
        "ties between levels": (rng.integers(-254, 227, shape) / 2).astype(FLOAT),
        "positive": np.abs(gauss),
        "negative": -np.abs(gauss),
        "all above 0": gauss + FLOAT(10),
        "all below 0": gauss - FLOAT(10),
        "zero sub-blocks": np.where(np.arange(COLUMNS) // 16 % 3 == 0, FLOAT(0), gauss),
        "sub-blocks of many sizes": _powers(rng, -12, 2, 16),
        "sub-blocks of all sizes": _powers(rng, -40, 18, 16),
        "weights of many sizes": _powers(rng, -30, 4, 1),
        "weights of all sizes": _powers(rng, -45, 38, 1),
        "near the largest float": (rng.uniform(-1, 1, shape) * np.finfo(FLOAT).max).astype(FLOAT),
        "any bits": np.where(np.isfinite(bits), bits, FLOAT(0)),
    }
    for size in (1e-5, 1e-7, 1e-8, 1e-9, 1e-12, 1e-14, 3e-15, 1e-15):
        found[f"gaussian times {size}"] = (gauss * FLOAT(size)).astype(FLOAT)
    found["near the largest float"][:, ::32] = np.finfo(FLOAT).max
    for outlier in (6e4, -1e4, 1e10, 1e13, -1e15, 1e20, 3e38, -3e38):
        found[f"one outlier of {outlier}"] = gauss.copy()
        found[f"one outlier of {outlier}"][:, 37] = outlier
        found[f"one outlier of {outlier} among small numbers"] = gauss * FLOAT(0.02)
        places = rng.integers(0, COLUMNS, ROWS)
        found[f"one outlier of {outlier} among small numbers"][np.arange(ROWS), places] = outlier
        found[f"nothing but {outlier}"] = np.zeros(shape, FLOAT)
        found[f"nothing but {outlier}"][:, 300] = outlier
    return found


def importances(block: int = 32, seed: int = 1) -> Iterator[np.ndarray | None]:
    """None and float32 [768]; no ``block`` columns, as a type keeps them, are all 0."""
    rng = np.random.default_rng(seed)
    yield None
    yield np.ones(COLUMNS, FLOAT)
    yield (rng.standard_normal(COLUMNS) ** 2).astype(FLOAT)
    holes = rng.random(COLUMNS).astype(FLOAT)
    holes[rng.random(COLUMNS) < 0.5] = 0
    holes[::32] = 1
    yield holes
    # Sub-blocks of 16 without any importance, and blocks with one column that has some.
    one = np.zeros(COLUMNS, FLOAT)
    one[5::block] = 1e-6
    yield one
    # Sub-blocks without any, where a block has several.
    every_other = rng.random(COLUMNS).astype(FLOAT)
    every_other.reshape(-1, block // 8)[::2] = 0
    yield every_other
    yield (10.0 ** rng.uniform(-15, 15, COLUMNS)).astype(FLOAT)
    yield (2.0 ** rng.integers(-120, 120, COLUMNS)).astype(FLOAT)
    yield np.full(COLUMNS, 1e-20, FLOAT)
